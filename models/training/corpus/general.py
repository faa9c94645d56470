"""General facts as questions with their answer."""

# Each entry: the ways to ask (the last one is held out for evaluation), the answer, and the words it must contain.
GENERAL: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (
            "How many planets are there?",
            "How many planets does the solar system have?",
            "What is the number of planets in the solar system?",
        ),
        "There are 8 planets in the solar system.",
        "8",
    ),
    (
        (
            "What is the largest planet?",
            "Which planet is the biggest?",
            "Name the largest planet.",
            "What is the biggest planet in the solar system?",
        ),
        "Jupiter is the largest planet in the solar system.",
        "Jupiter",
    ),
    (
        ("What is the smallest planet?", "Which planet is the smallest?", "Name the smallest planet."),
        "Mercury is the smallest planet in the solar system.",
        "Mercury",
    ),
    (
        ("Which planet is called the red planet?", "What is the red planet?", "Name the red planet."),
        "Mars is called the red planet.",
        "Mars",
    ),
    (
        ("Which planet do we live on?", "What planet are we on?", "On which planet do people live?"),
        "We live on the planet Earth.",
        "Earth",
    ),
    (
        ("What is water made of?", "What is the formula of water?", "What is H2O?", "Tell me what water is made of."),
        "Water is H2O: two parts hydrogen and one part oxygen.",
        "H2O",
    ),
    (
        ("What is the largest animal?", "Which animal is the biggest?", "Name the largest animal on Earth."),
        "The blue whale is the largest animal.",
        "blue whale",
    ),
    (
        ("What is the fastest land animal?", "Which animal runs fastest?", "Which land animal is the fastest?"),
        "The cheetah is the fastest land animal.",
        "cheetah",
    ),
    (
        ("What is the tallest animal?", "Which animal is the tallest?", "Name the tallest animal."),
        "The giraffe is the tallest animal.",
        "giraffe",
    ),
    (
        (
            "What is the highest mountain?",
            "Which mountain is the highest?",
            "What is the tallest mountain in the world?",
        ),
        "Mount Everest is the highest mountain.",
        "Everest",
    ),
    (
        ("What is the largest ocean?", "Which ocean is the biggest?", "Name the largest ocean."),
        "The Pacific is the largest ocean.",
        "Pacific",
    ),
    (
        ("What is the largest country?", "Which country is the biggest?", "Name the largest country in the world."),
        "Russia is the largest country by area.",
        "Russia",
    ),
    (
        ("How many continents are there?", "What is the number of continents?", "How many continents does Earth have?"),
        "There are seven continents.",
        "seven",
    ),
    (
        ("Name the continents.", "What are the continents?", "List the seven continents."),
        "The continents are Africa, Antarctica, Asia, Europe, North America, Oceania and South America.",
        "Antarctica",
    ),
    (
        ("Name the seasons.", "What are the four seasons?", "How many seasons are there?", "List the seasons."),
        "The four seasons are spring, summer, autumn and winter.",
        "summer",
    ),
    (
        (
            "How many letters are in the alphabet?",
            "How long is the alphabet?",
            "How many letters does the English alphabet have?",
        ),
        "The English alphabet has 26 letters.",
        "26",
    ),
    (
        ("Say the alphabet.", "What is the alphabet?", "Recite the alphabet."),
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z.",
        "X Y Z",
    ),
    (
        ("Name the vowels.", "What are the vowels?", "Which letters are vowels?", "List the vowels."),
        "The vowels are A, E, I, O and U.",
        "A, E, I, O and U",
    ),
    (("What do bees make?", "Where does honey come from?", "What is made by bees?"), "Bees make honey.", "honey"),
    (
        ("Where does milk come from?", "What animal gives milk?", "Which animal does milk come from?"),
        "Milk comes from cows.",
        "cows",
    ),
    (("What do cows eat?", "What does a cow eat?", "Tell me what cows eat."), "Cows eat grass.", "grass"),
    (("Is the sun a star?", "What is the sun?", "What kind of thing is the sun?"), "The sun is a star.", "star"),
    (
        ("What is the moon?", "What goes around the Earth?", "Tell me what the moon is."),
        "The moon is a ball of rock that goes around the Earth.",
        "rock",
    ),
    (
        ("At what temperature does water boil?", "When does water boil?", "What is the boiling point of water?"),
        "Water boils at 100 degrees Celsius.",
        "100",
    ),
    (
        ("At what temperature does water freeze?", "When does water freeze?", "What is the freezing point of water?"),
        "Water freezes at 0 degrees Celsius.",
        "0",
    ),
    (("What is ice?", "What is ice made of?", "Tell me what ice is."), "Ice is frozen water.", "frozen water"),
    (
        ("How many sides does a triangle have?", "How many corners has a triangle?", "Count the sides of a triangle."),
        "A triangle has 3 sides.",
        "3",
    ),
    (
        ("How many sides does a square have?", "How many corners has a square?", "Count the sides of a square."),
        "A square has 4 sides.",
        "4",
    ),
    (
        ("How many sides does a hexagon have?", "How many corners has a hexagon?", "Count the sides of a hexagon."),
        "A hexagon has 6 sides.",
        "6",
    ),
    (
        ("How many wheels does a car have?", "How many wheels are on a car?", "Tell me how many wheels a car has."),
        "A car has 4 wheels.",
        "4",
    ),
    (
        (
            "How many wheels does a bicycle have?",
            "How many wheels are on a bike?",
            "Tell me how many wheels a bicycle has.",
        ),
        "A bicycle has 2 wheels.",
        "2",
    ),
    (
        ("How many fingers do people have?", "How many fingers do I have?", "Tell me how many fingers a person has."),
        "People have 10 fingers.",
        "10",
    ),
    (
        (
            "What are the primary colours?",
            "Name the primary colours.",
            "What are the primary colors?",
            "List the primary colours.",
        ),
        "The primary colours are red, yellow and blue.",
        "red, yellow and blue",
    ),
    (
        (
            "What colours are in the rainbow?",
            "Name the colours of the rainbow.",
            "What are the colors of the rainbow?",
            "List the rainbow colours.",
        ),
        "The rainbow is red, orange, yellow, green, blue, indigo and violet.",
        "indigo",
    ),
    (
        ("Where does the sun rise?", "In which direction does the sun rise?", "Tell me where the sun rises."),
        "The sun rises in the east.",
        "east",
    ),
    (
        ("Where does the sun set?", "In which direction does the sun set?", "Tell me where the sun sets."),
        "The sun sets in the west.",
        "west",
    ),
    (
        ("What do plants need?", "What does a plant need to grow?", "Tell me what plants need to grow."),
        "Plants need light, water and air.",
        "light, water and air",
    ),
    (("What is gold?", "Is gold a metal?", "What kind of thing is gold?"), "Gold is a yellow metal.", "metal"),
    (
        ("What does a doctor do?", "What is a doctor?", "Tell me what a doctor does."),
        "A doctor helps people who are ill.",
        "ill",
    ),
    (
        ("What does a teacher do?", "What is a teacher?", "Tell me what a teacher does."),
        "A teacher helps people learn.",
        "learn",
    ),
    (
        ("What does a baker do?", "What is a baker?", "Tell me what a baker does."),
        "A baker makes bread and cakes.",
        "bread",
    ),
)
