"""A setup without a network goes on at once."""

import runpy
import socket
from pathlib import Path

answers = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "torch_build.py"))["answers"]


def test_an_index_that_does_not_answer_is_given_up_soon():
    with socket.socket() as listener:  # it takes the connection, and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert not answers(url, 0.05)
    assert not answers(url)
    assert not answers("http://no-such-host.invalid/")
