"""The small tables of facts that the demo model learns."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    """A table written as `key/value|key/value`."""
    return dict(pair.split("/") for pair in text.split("|"))


CAPITALS = _pairs(
    "France/Paris|Germany/Berlin|Italy/Rome|Spain/Madrid|Portugal/Lisbon|Austria/Vienna|Switzerland/Bern|"
    "Belgium/Brussels|the Netherlands/Amsterdam|Denmark/Copenhagen|Sweden/Stockholm|Norway/Oslo|"
    "Finland/Helsinki|Iceland/Reykjavik|Ireland/Dublin|the United Kingdom/London|Poland/Warsaw|"
    "Hungary/Budapest|Greece/Athens|Turkey/Ankara|Russia/Moscow|Ukraine/Kyiv|Romania/Bucharest|"
    "Bulgaria/Sofia|Serbia/Belgrade|Croatia/Zagreb|Estonia/Tallinn|Latvia/Riga|Lithuania/Vilnius|"
    "the Czech Republic/Prague|Slovakia/Bratislava|Slovenia/Ljubljana|Japan/Tokyo|China/Beijing|"
    "India/New Delhi|South Korea/Seoul|Thailand/Bangkok|Vietnam/Hanoi|Indonesia/Jakarta|Iran/Tehran|"
    "Iraq/Baghdad|Israel/Jerusalem|Saudi Arabia/Riyadh|Nepal/Kathmandu|Egypt/Cairo|Kenya/Nairobi|"
    "Nigeria/Abuja|Ghana/Accra|Ethiopia/Addis Ababa|Morocco/Rabat|Tunisia/Tunis|Senegal/Dakar|"
    "the United States/Washington, D.C.|Canada/Ottawa|Mexico/Mexico City|Cuba/Havana|Brazil/Brasilia|"
    "Argentina/Buenos Aires|Chile/Santiago|Peru/Lima|Colombia/Bogota|Uruguay/Montevideo|Australia/Canberra|"
    "New Zealand/Wellington"
)

CONTINENTS = {
    **dict.fromkeys(list(CAPITALS)[:19], "Europe"),
    **dict.fromkeys(list(CAPITALS)[21:32], "Europe"),
    **dict.fromkeys(list(CAPITALS)[32:44], "Asia"),
    **dict.fromkeys(list(CAPITALS)[44:52], "Africa"),
    **dict.fromkeys(list(CAPITALS)[52:56], "North America"),
    **dict.fromkeys(list(CAPITALS)[56:62], "South America"),
    **dict.fromkeys(list(CAPITALS)[62:], "Oceania"),
}

COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a banana": "yellow", "a lemon": "yellow",
    "a strawberry": "red", "a tomato": "red", "blood": "red", "a carrot": "orange", "the sun": "yellow",
    "milk": "white", "chocolate": "brown", "a leaf": "green", "the sea": "blue", "a plum": "purple", "a frog": "green",
    "salt": "white", "an elephant": "grey", "a flamingo": "pink",
}  # fmt: skip

MIXTURES = {
    ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple", ("black", "white"): "grey",
    ("red", "white"): "pink",
}  # fmt: skip

SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink", "horse": "neigh",
    "lion": "roar", "bee": "buzz", "owl": "hoot", "frog": "ribbit", "snake": "hiss", "mouse": "squeak",
    "rooster": "cock-a-doodle-doo", "donkey": "hee-haw", "bird": "tweet",
}  # fmt: skip

YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "duck": "duckling", "pig": "piglet",
    "horse": "foal", "lion": "cub", "bear": "cub", "frog": "tadpole", "goat": "kid", "hen": "chick", "swan": "cygnet",
}  # fmt: skip

LEGS = {
    "dog": 4, "cat": 4, "cow": 4, "horse": 4, "bird": 2, "duck": 2, "spider": 8, "ant": 6, "bee": 6, "fly": 6,
    "snake": 0, "fish": 0, "human": 2, "elephant": 4, "octopus": 8, "crab": 10, "lion": 4, "mouse": 4,
}  # fmt: skip

OPPOSITES = _pairs(
    "hot/cold|big/small|tall/short|fast/slow|happy/sad|up/down|left/right|open/closed|full/empty|"
    "light/dark|old/young|new/used|rich/poor|strong/weak|hard/soft|wet/dry|early/late|good/bad|"
    "day/night|black/white|in/out|true/false|loud/quiet|clean/dirty|near/far|high/low|thick/thin|"
    "easy/difficult|start/end|yes/no|love/hate|push/pull|winter/summer|north/south|east/west|first/last|"
    "always/never|heavy/light|awake/asleep|win/lose"
)

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip

PLURALS = {
    "mouse": "mice", "child": "children", "foot": "feet", "tooth": "teeth", "man": "men", "woman": "women",
    "sheep": "sheep", "goose": "geese", "leaf": "leaves", "box": "boxes", "city": "cities", "dog": "dogs",
    "apple": "apples", "baby": "babies", "knife": "knives", "fish": "fish",
}  # fmt: skip

LANGUAGES = {
    "France": "French", "Germany": "German", "Italy": "Italian", "Spain": "Spanish", "Portugal": "Portuguese",
    "Japan": "Japanese", "China": "Chinese", "Brazil": "Portuguese", "Mexico": "Spanish", "Poland": "Polish",
    "Greece": "Greek", "Sweden": "Swedish", "the United States": "English", "Australia": "English", "Egypt": "Arabic",
    "Austria": "German", "Norway": "Norwegian", "Turkey": "Turkish",
}  # fmt: skip

GROUPS = {
    "animals": ("dog", "cat", "cow", "horse", "sheep", "lion", "mouse", "duck", "bear", "frog"),
    "colours": ("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white"),
    "fruits": ("apple", "banana", "orange", "lemon", "pear", "plum", "cherry", "grape", "melon", "peach"),
    "vegetables": ("carrot", "potato", "tomato", "onion", "pea", "bean", "cabbage", "leek", "pumpkin", "radish"),
    "countries": ("France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil", "Canada", "Egypt"),
    "cities": ("Paris", "Berlin", "Rome", "Madrid", "Tokyo", "Beijing", "London", "Cairo", "Lima", "Oslo"),
    "birds": ("robin", "owl", "duck", "swan", "eagle", "crow", "parrot", "penguin", "goose", "sparrow"),
    "sports": ("football", "tennis", "swimming", "running", "cycling", "skiing", "hockey", "golf", "rowing", "boxing"),
}  # fmt: skip

NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo", "Maria", "Nina",
    "Oscar", "Paul", "Rosa", "Sam", "Tom", "Uma", "Vera", "Will", "Yuki", "Zoe", "Alex", "Bob", "Alice", "Chen",
    "Omar", "Lena", "Max", "Sophie",
)  # fmt: skip

WORDS = _words(
    "cat dog house tree water apple banana bread milk table chair book school happy green yellow river mountain "
    "sun moon star cloud rain snow winter summer spring garden flower bird horse mouse lion tiger monkey rabbit "
    "window door kitchen bottle paper pencil music dance smile friend family mother father sister brother hello "
    "world queue token model lion train bicycle plane ship street city country island ocean forest orange lemon "
    "cheese butter sugar coffee tea honey cake pizza light night morning evening"
)
