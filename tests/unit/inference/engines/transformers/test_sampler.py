"""How tokens are drawn, row by row."""

from types import SimpleNamespace
from typing import Any

import pytest

from common.sampling import Sampling
from inference.engines.transformers.compute_time import ComputeClock, StepClock
from inference.engines.transformers.fast_import import fast_import

with fast_import():
    import torch

    from inference.engines.transformers.sampler import Draw, Sampler

VOCABULARY = 50


def drawn(samplings, logits=None, repeat=1, resumed=()):
    """The tokens of `repeat` steps for each sampling."""
    sampler = Sampler(StepClock(ComputeClock()))
    for number, sampling in enumerate(samplings):
        sampler.add(str(number), Draw.after(sampling, 0, resumed))
    requests = [
        SimpleNamespace(
            state=SimpleNamespace(request_id=str(number), position_offset=9), query_length=4, has_new_token=True
        )
        for number in range(len(samplings))
    ]
    steps: list[Any] = []
    for _ in range(repeat):
        torch.manual_seed(len(steps))
        scores = torch.linspace(0, 5, VOCABULARY).repeat(len(samplings), 1) if logits is None else logits.clone()
        sampler.prepare_tensor_args(requests, torch.empty(0))
        steps.append(sampler(torch.empty(0), scores, torch.empty(0)).argmax(dim=-1).tolist())
    return [[step[row] for step in steps] for row in range(len(samplings))]


def test_greedy_takes_the_highest_beside_sampled_ones():
    greedy, sampled = drawn([Sampling(temperature=0.0), Sampling()], repeat=40)
    assert set(greedy) == {VOCABULARY - 1}
    assert len(set(sampled)) > 5


def test_draws_follow_the_probabilities():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    counts = torch.bincount(torch.tensor(drawn([Sampling()], logits, repeat=1500)[0]), minlength=3) / 1500
    assert counts.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.05)


def test_top_k_and_top_p_are_each_row_s_own():
    rows = drawn([Sampling(top_k=2), Sampling(top_p=0.0001), Sampling(top_k=1, temperature=2.0), Sampling()], repeat=60)
    assert set(rows[0]) == {VOCABULARY - 1, VOCABULARY - 2}
    assert set(rows[1]) == set(rows[2]) == {VOCABULARY - 1}
    assert len(set(rows[3])) > 5


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert set(drawn([Sampling(top_p=0.79)], logits, repeat=200)[0]) == {0, 1}
    assert set(drawn([Sampling(top_p=0.81)], logits, repeat=200)[0]) == {0, 1, 2}


def test_a_seed_decides_whatever_the_others_do_and_goes_on_after_a_resume():
    alone = drawn([Sampling(seed=5)], repeat=10)[0]
    assert drawn([Sampling(), Sampling(seed=5), Sampling(seed=6)], repeat=10)[1] == alone
    assert drawn([Sampling(seed=6)], repeat=10)[0] != alone
    assert drawn([Sampling(seed=5)], repeat=6, resumed=alone[:4])[0] == alone[4:]
    assert drawn([Sampling(seed=-(2**63))], repeat=2)


def test_penalties_count_what_was_drawn_and_resumed():
    logits = torch.tensor([[1.0, 0.9, 0.0]])
    assert drawn([Sampling(temperature=0.0, presence_penalty=0.5)], logits, repeat=3)[0] == [0, 1, 0]
    assert drawn([Sampling(temperature=0.0, frequency_penalty=0.6)], logits, repeat=5)[0] == [0, 1, 0, 1, 2]
    assert drawn([Sampling(temperature=0.0, frequency_penalty=0.5)], logits, resumed=(0,))[0] == [1]
    assert drawn([Sampling(temperature=0.0, frequency_penalty=-2.0)], logits, repeat=3)[0] == [0, 0, 0]


def test_the_first_step_tells_what_came_from_the_cache():
    sampler = Sampler(StepClock(ComputeClock()))
    draw = Draw.after(Sampling(), 0, ())
    sampler.add("0", draw)
    state = SimpleNamespace(request_id="0", position_offset=36)
    sampler.prepare_tensor_args([SimpleNamespace(state=state, query_length=4, has_new_token=False)], torch.empty(0))
    state.position_offset = 40
    sampler.prepare_tensor_args([SimpleNamespace(state=state, query_length=4, has_new_token=True)], torch.empty(0))
    assert draw.cached_tokens == 32
