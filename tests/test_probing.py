"""The probe: which places are chosen, what is recommended, what a budget buys, and the verb end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from regraft.workflow import matrix

import regraft as api
from conftest import reading, toy, write_folder
from regraft import workflow
from regraft.features import extract
from regraft.plans.schema import Phase
from regraft.probing import halving
from regraft.probing.candidates import (
    Candidate,
    LayerFeatures,
    ProbeRow,
    neighbour_count,
    score_concatenated,
    score_layers,
)
from regraft.probing.greedy_selection import select_greedily
from regraft.probing.halving import (
    affordable_candidates,
    better_half,
    count_rounds,
    images_per_round,
    parse_duration,
)
from regraft.probing.learning_curve import CurvePoint, forecast_accuracy, measure_learning_curve
from regraft.probing.rank_correlation import correlate_ranks
from regraft.probing.recommend import probe_front, recommend
from regraft.probing.successive_halving import (
    BudgetTooShortError,
    Dropped,
    SuccessiveHalving,
    TimeBudget,
)
from regraft.runs.folder import list_runs
from regraft.system.progress import ProgressReporter
from regraft.training.linear import LabelledFeatures

SOLVED = Phase(train="head", optimizer="lbfgs", l2=(0.01, 0.1, 1.0))
TINY = ("--backbones", "test_resnet", "--weights", "random", "-q")


class Heard(ProgressReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def taken(place: str, x: np.ndarray, x_val: np.ndarray, work: int) -> LayerFeatures:
    return LayerFeatures(
        place, x.astype(np.float16), x_val.astype(np.float16), work, work / 100, x.nbytes
    )


def cell(
    seed: int = 0,
    n: int = 200,
    classes: int = 4,
    widths: tuple[int, ...] = (3, 5, 8),
    source: bool = False,
) -> Candidate:
    rng = np.random.default_rng(seed)
    y, y_val = np.arange(n) % classes, np.arange(n // 2) % classes
    made = []
    for number, width in enumerate(widths):
        centres = (number + 1) * 0.5 * rng.standard_normal((classes, width))
        made.append(
            taken(
                f"b{number}",
                centres[y] + rng.standard_normal((n, width)),
                centres[y_val] + rng.standard_normal((n // 2, width)),
                10 * (number + 1),
            )
        )
    head = (
        (torch.randn(7, widths[-1], generator=torch.Generator().manual_seed(0)), torch.zeros(7))
        if source
        else None
    )
    return Candidate("net", 32, tuple(made), (y, y_val), classes, head)


def row(
    name: str,
    accuracy: float,
    work: int,
    n: int = 400,
    resolution: int = 32,
    kind: str = "single",
    **more: object,
) -> ProbeRow:
    right = np.arange(n) < round(accuracy * n)
    given = {"knn": accuracy, "logme": accuracy, "h_score": accuracy, "leep": None} | more
    return ProbeRow(
        "net",
        resolution,
        (name,),
        kind,
        8,
        100,
        accuracy,
        (0.0, 1.0),
        1.0,
        0.1,
        **given,
        multiply_adds=work,
        seconds=1.0,
        bytes=1,
        right=right,
    )  # type: ignore[arg-type]


# ── what places are worth


def test_each_place_gets_every_score_and_deeper_ones_here_do_better() -> None:
    seen = 0
    for seed in range(5):
        found = score_layers(cell(seed, source=True), SOLVED)
        assert [one.places for one in found] == [("b0",), ("b1",), ("b2",)]
        assert found[0].accuracy < found[2].accuracy
        assert found[0].logme < found[2].logme  # type: ignore[operator]
        assert found[0].h_score < found[2].h_score  # type: ignore[operator]
        assert [one.leep is None for one in found] == [
            True,
            True,
            False,
        ]  # the source head takes the end of the network
        assert all(one.ci95[0] <= one.accuracy <= one.ci95[1] for one in found)
        assert [one.multiply_adds for one in found] == [10, 20, 30]
        seen += 1
    assert seen == 5


def test_as_many_neighbours_vote_as_the_smallest_class_has_images() -> None:
    assert neighbour_count(np.repeat(np.arange(3), 50)) == 20
    assert neighbour_count(np.array([0] * 50 + [1] * 3)) == 3


def test_fewer_neighbours_than_usual_are_said(photos: Path) -> None:
    heard = Heard()
    done = api.probe(
        str(photos),
        ["test_resnet"],
        [16],
        weights="random",
        out="p",
        train_images=30,
        reporter=heard,
    )
    assert done.told["neighbours"] == 10
    assert (
        "The smallest class has 10 training images, so 10 neighbours vote and not 20." in heard.said
    )


def test_places_that_complete_each_other_are_chosen_and_copies_are_not() -> None:
    chosen_right = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        bits = rng.integers(0, 2, (400, 2))
        first = torch.from_numpy(bits[:, :1] * 3.0 + rng.standard_normal((400, 1))).float()
        second = torch.from_numpy(bits[:, 1:] * 3.0 + rng.standard_normal((400, 1))).float()
        noise = torch.from_numpy(rng.standard_normal((400, 1))).float()
        found = select_greedily(
            [noise, first, first.clone(), second], torch.from_numpy(bits[:, 0] * 2 + bits[:, 1]), 4
        )
        assert len(set(found) & {1, 2}) >= 1
        assert 3 in found
        chosen_right += (
            len(set(found) & {1, 2}) == 1
        )  # a copy of what is there already rarely helps, and then by rounding
    assert chosen_right >= 10


def test_side_by_side_beats_each_place_alone_where_they_complete_each_other() -> None:
    joined = score_concatenated(cell(3, widths=(6, 6, 6)), SOLVED, 8192)
    assert {one.kind for one in joined} <= {"greedy", "all"}
    assert joined[-1].multiply_adds == 30
    assert (
        max(one.accuracy for one in joined)
        >= max(one.accuracy for one in score_layers(cell(3, widths=(6, 6, 6)), SOLVED)) - 0.02
    )
    assert score_concatenated(cell(0, widths=(4,)), SOLVED, 8192) == []


def test_more_features_than_fit_are_thinned_evenly_from_the_end_and_that_is_said() -> None:
    many = cell(0, widths=(4,) * 9)
    heard = Heard()
    joined = score_concatenated(many, SOLVED, 12, heard)
    assert [one.places for one in joined if one.kind == "all"] in ([], [("b2", "b5", "b8")])
    assert all(set(one.places) <= {"b2", "b5", "b8"} for one in joined)
    assert heard.said == [
        "net at 32 px has 36 features; every 3. place goes side by side, so that they fit."
    ]


# ── what follows from the rows

accuracies = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=12)


@given(accuracies)
def test_nothing_on_the_front_is_beaten_and_everything_else_is(
    pairs: list[tuple[int, int]],
) -> None:
    rows = [row(f"p{number}", accuracy / 40, work) for number, (accuracy, work) in enumerate(pairs)]
    front = probe_front(rows)
    for one in rows:
        beaten = any(
            other.accuracy > one.accuracy and other.multiply_adds <= one.multiply_adds
            for other in rows
        )
        if one in front:
            assert not beaten
        else:
            assert any(
                other.accuracy >= one.accuracy and other.multiply_adds <= one.multiply_adds
                for other in front
            )
    assert [one.multiply_adds for one in front] == sorted({one.multiply_adds for one in front})


@given(accuracies)
def test_the_recommendations_keep_what_they_say(pairs: list[tuple[int, int]]) -> None:
    rows = [row(f"p{number}", accuracy / 40, work) for number, (accuracy, work) in enumerate(pairs)]
    fastest, balanced, best = recommend(rows, 0.1)
    assert [one.budget for one in (fastest, balanced, best)] == ["fastest", "balanced", "best"]
    assert best.row.accuracy == max(one.accuracy for one in rows)
    bar = min(best.row.accuracy, 0.1 + 0.9 * (best.row.accuracy - 0.1))
    assert fastest.row.accuracy >= bar
    assert all(one.accuracy < bar for one in rows if one.multiply_adds < fastest.row.multiply_adds)
    assert balanced.row.multiply_adds <= best.row.multiply_adds


def test_balanced_is_the_cheapest_that_chance_may_explain() -> None:
    rows = [
        row("cheap", 0.60, 1),
        row("alike", 0.79, 5),
        row("best", 0.80, 9),
    ]  # of 400 images: 80 fewer right, and 4 fewer
    assert [one.row.places[0] for one in recommend(rows, 0.1)] == [
        "alike",
        "alike",
        "best",
    ]
    assert "1.8 times less work" in recommend(rows, 0.1)[1].why


# ── budgets


@pytest.mark.parametrize(
    ("written", "meant"),
    [("90", 90), ("90s", 90), ("5m", 300), ("5 min", 300), ("1.5h", 5400), (" 2m ", 120)],
)
def test_budgets_are_times(written: str, meant: float) -> None:
    assert parse_duration(written) == meant


@pytest.mark.parametrize("written", ["", "fast", "-5s", "0", "5x", "s"])
def test_what_is_no_time_is_refused_in_a_sentence(written: str) -> None:
    with pytest.raises(
        api.UserError, match=r"is no time. Expected seconds, or a number with s, m or h"
    ):
        parse_duration(written)


@given(
    st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=16),
    st.floats(1.0, 600.0),
    st.integers(50, 5000),
)
def test_halving_stays_within_its_budget_where_costs_are_as_they_were_said(
    costs: list[float], budget: float, most: int
) -> None:
    named = dict(enumerate(costs))
    least = 20
    going = affordable_candidates(named, budget, least)
    spent, rounds = 0.0, 0
    while going:
        count = images_per_round([named[one] for one in going], budget - spent, len(going), most)
        assert count >= least or rounds
        spent += count * sum(named[one] for one in going)
        rounds += 1
        if len(going) == 1 or count == most:
            break
        better = better_half({one: -one for one in going})
        assert len(better) == math.ceil(len(going) / 2)
        assert better[0] == min(going)
        going = better
    assert spent <= budget + 1e-6
    assert rounds <= count_rounds(len(costs))


def test_what_the_budget_cannot_afford_is_the_dearest() -> None:
    costs = {"a": 0.001, "b": 0.01, "c": 1.0}
    assert affordable_candidates(costs, 10, 100) == ["a", "b"]
    assert affordable_candidates(costs, 0.05, 100) == []
    assert affordable_candidates(costs, 1000, 100) == ["a", "b", "c"]


class Clock:
    """A clock that stands still until somebody works."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Judge:
    """Gives every candidate its score, in a time that its true cost and overhead say."""

    def __init__(self, clock: Clock, scores: list[float], seconds: list[float]) -> None:
        self.clock, self.scores, self.seconds = clock, scores, seconds
        self.judged: list[tuple[int, int]] = []

    def __call__(self, candidate: int, images: int) -> float:
        self.judged.append((candidate, images))
        self.clock.now += self.seconds[candidate] * images
        return self.scores[candidate]


def halve_in_one_go(
    costs: dict[int, float], budget: TimeBudget, total: int, least: int, judge: Judge
) -> tuple[list[int], list[int]]:
    """Return who is left and who was dropped, by the rules in one function with its own clock."""
    clock, dropped = budget.clock, []

    def left() -> float:
        return budget.seconds * 0.7 - (clock() - budget.began)

    cheapest = min(costs, key=costs.__getitem__)
    if costs[cheapest] * least < left():
        started = clock()
        judge(cheapest, least)
        judging = max(0.0, (clock() - started) / least - costs[cheapest])
        costs = {key: cost + judging for key, cost in costs.items()}
    going = [key for key in costs if key in affordable_candidates(costs, left(), least)]
    if not going:
        spent = clock() - budget.began
        needed = int(np.ceil((spent + costs[cheapest] * least) / 0.7 + 1))
        raise BudgetTooShortError(cheapest, least, spent, needed)
    dropped += [key for key in costs if key not in going]
    seen = 0
    while True:
        count = images_per_round([costs[key] for key in going], left(), len(going), total)
        if count <= seen:
            return going, dropped
        seen = count = max(count, least)
        reached = {}
        for key in going:
            started = clock()
            reached[key] = judge(key, count)
            costs[key] = (clock() - started) / count
        if count == total or len(going) == 1:
            return going, dropped
        better = better_half(reached)
        dropped += [key for key in going if key not in better]
        going = [key for key in going if key in better]


def halve_by_rounds(
    costs: dict[int, float], budget: TimeBudget, total: int, least: int, judge: Judge
) -> tuple[list[int], list[int]]:
    at_once: list[Dropped[int]] = []
    schedule = SuccessiveHalving(costs, budget, total, least, on_drop=at_once.append)
    for round_ in schedule.rounds():
        for candidate in round_.candidates:
            started = budget.clock()
            score = judge(candidate, round_.images)
            schedule.record(candidate, score, budget.clock() - started)
    assert at_once == schedule.dropped
    return schedule.candidates, [dropped.candidate for dropped in schedule.dropped]


def outcome(run, costs, scores, seconds, budget, total, least):  # type: ignore[no-untyped-def]
    """Return what was judged, and who was left and dropped, or how the budget was too short."""
    clock = Clock(1000.0)
    judge = Judge(clock, scores, seconds)
    limits = TimeBudget(budget, 990.0, clock)
    try:
        result = run(dict(enumerate(costs)), limits, total, least, judge)
    except BudgetTooShortError as error:
        result = (error.candidate, error.images, error.spent, error.needed)
    return judge.judged, result, clock.now


CANDIDATES = st.lists(
    st.tuples(
        st.floats(1e-4, 0.1),  # seconds an image, as estimated
        st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75]),  # score, with ties
        st.floats(0.5, 4.0),  # true over estimated seconds
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=400)
@given(CANDIDATES, st.floats(1.0, 2000.0), st.integers(20, 3000), st.integers(1, 200))
def test_the_rounds_decide_as_the_rules_in_one_function_do(
    candidates: list[tuple[float, float, float]], budget: float, total: int, least: int
) -> None:
    costs, scores, factors = (list(column) for column in zip(*candidates, strict=True))
    seconds = [cost * factor + 1e-5 for cost, factor in zip(costs, factors, strict=True)]
    arguments = (costs, scores, seconds, budget, total, min(least, total))
    assert outcome(halve_by_rounds, *arguments) == outcome(halve_in_one_go, *arguments)


def test_rounds_halve_the_candidates_and_say_why_each_was_dropped() -> None:
    clock = Clock(0.0)
    costs = {"a": 0.01, "b": 0.01, "c": 0.01, "d": 0.01, "dear": 9.0}
    scores = {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.9}
    schedule = SuccessiveHalving(costs, TimeBudget(100, 0.0, clock), images=10_000, least=100)
    seen = []
    for round_ in schedule.rounds():
        seen.append(round_)
        for candidate in round_.candidates:
            clock.now += 0.01 * round_.images
            schedule.record(candidate, scores[candidate], 0.01 * round_.images)
    assert [round_.candidates for round_ in seen] == [
        ("a",),  # the trial
        ("a", "b", "c", "d"),
        ("b", "d"),
        ("d",),
    ]
    images = [round_.images for round_ in seen]
    assert images == sorted(images)
    assert schedule.candidates == ["d"]
    assert [dropped.candidate for dropped in schedule.dropped] == ["dear", "a", "c", "b"]
    assert schedule.dropped[0].why.startswith("the budget has no room for it")
    assert schedule.dropped[1].why == (
        f"after {images[1]:,} training images its best layer reached 0.500, the last one kept 0.700"
    )
    assert clock.now <= 70


# ── learning curve and hit rate


def test_a_power_law_is_continued_to_the_digit() -> None:
    for exponent in (0.1, 0.3, 0.5):
        points = [
            CurvePoint(n, 1 - 0.9 * n**-exponent, 0.0 if n < 1600 else None, 3)
            for n in (200, 400, 800, 1600)
        ]
        forecast = forecast_accuracy(points, 3200, 10**9)
        assert forecast is not None
        assert forecast.accuracy == pytest.approx(1 - 0.9 * 3200**-exponent, abs=1e-6)
        assert forecast.gain == pytest.approx(forecast.accuracy - points[-1].accuracy)
    assert forecast_accuracy(points[:1], 400, 100) is None


def test_a_noisier_curve_has_a_wider_forecast() -> None:
    widths = []
    for spread in (0.001, 0.01, 0.05):
        sizes = (200, 400, 800, 1600)
        points = [CurvePoint(n, 1 - 2 * n**-0.3, spread, 3) for n in sizes]
        low, high = forecast_accuracy(points, 3200, 1000).ci95  # type: ignore[union-attr]
        widths.append(high - low)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] / 5


def test_the_curve_grows_and_ends_at_all_images() -> None:
    data, candidate = toy(240), cell(0, 240, widths=(6,))
    x, x_val = candidate.features(["b0"])
    y, y_val = (torch.from_numpy(labels) for labels in candidate.labels)
    measured = measure_learning_curve(
        LabelledFeatures(x, y),
        LabelledFeatures(x_val, y_val),
        4,
        SOLVED,
        (0.9, 0.1),
        lambda size, number: data.subset(np.arange(240), size, number),
    )
    assert [point.images for point in measured.points] == [15, 30, 60, 120, 240]
    assert measured.points[0].accuracy < measured.points[-1].accuracy
    assert [point.repeats for point in measured.points] == [3, 3, 3, 3, 1]
    assert measured.points[-1].spread is None
    assert measured.forecast is not None
    assert measured.forecast.images == 480
    written = measured.to_json()
    assert list(written) == ["points", "forecast"]
    assert list(written["points"][0]) == ["images", "accuracy", "spread", "repeats"]
    assert list(written["forecast"]) == ["images", "accuracy", "ci95", "gain"]


def finished(
    resolution: int,
    accuracy: float,
    technique: str = "fine-tune",
    train: str = "all",
    until: tuple[str, ...] = (),
) -> SimpleNamespace:
    plan = SimpleNamespace(
        backbone="net",
        resolution=resolution,
        stages_taken=until,
        technique=technique,
        phases=[SimpleNamespace(train=train)],
    )
    return SimpleNamespace(plan=plan, scores={"val": {"accuracy": accuracy}})


def test_the_hit_rate_is_the_order_in_which_fine_tuning_came_out() -> None:
    rows = [
        row("end", accuracy, 1, resolution=side)
        for side, accuracy in ((32, 0.5), (64, 0.6), (96, 0.7), (128, 0.8))
    ]
    same = [
        finished(side, accuracy)
        for side, accuracy in ((32, 0.7), (64, 0.8), (96, 0.85), (128, 0.9))
    ]
    by_score = {found.score: found for found in correlate_ranks(rows, same)}  # type: ignore[arg-type]
    assert set(by_score) == {"accuracy", "knn", "logme", "h_score"}  # no head, no LEEP
    assert by_score["accuracy"].kendall == by_score["accuracy"].spearman == pytest.approx(1.0)
    assert by_score["accuracy"].runs == 4
    keys = ["technique", "score", "runs", "kendall", "p", "spearman"]
    assert list(by_score["accuracy"].to_json()) == keys
    against = [
        finished(side, 1 - accuracy)
        for side, accuracy in ((32, 0.7), (64, 0.8), (96, 0.85), (128, 0.9))
    ]
    assert correlate_ranks(rows, against)[0].kendall == pytest.approx(-1.0)  # type: ignore[arg-type]


def test_too_few_runs_or_runs_that_trained_the_head_only_say_nothing() -> None:
    rows = [
        row("end", accuracy, 1, resolution=side)
        for side, accuracy in ((32, 0.5), (64, 0.6), (96, 0.7))
    ]
    sides = (32, 64, 96)
    two = [finished(32, 0.7), finished(64, 0.8)]
    heads = [finished(side, 0.7 + side / 1000, train="head") for side in sides]
    elsewhere = [finished(200 + side, 0.7 + side / 1000) for side in sides]
    for too_few in (two, heads, elsewhere):
        assert correlate_ranks(rows, too_few) == []  # type: ignore[arg-type]
    seeds = [finished(side, side / 200 + shift) for side in sides for shift in (0.0, 0.3)]
    assert correlate_ranks(rows, seeds)[0].runs == 3  # type: ignore[arg-type]


# ── the verb


def test_probe_writes_tables_pictures_and_plans_and_fit_reaches_what_they_promise(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    result = regraft("probe", photos, *TINY, "--resolutions", "16,32", "--out", "p", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert {path.name for path in Path("p").iterdir()} == {
        "probe.json",
        "places.csv",
        "accuracy-by-depth.png",
        "accuracy-against-cost.png",
        "learning-curve.png",
        "plan-fastest.toml",
        "plan-balanced.toml",
        "plan-best.toml",
    }
    for path in Path("p").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.size[0] > 500
    assert {one["resolution"] for one in told["places"]} == {16, 32}
    alone = [one["name"] for one in told["places"] if one["kind"] == "single"]
    assert len(alone) == len(set(alone)) == 2 * 5
    promised = 0
    for choice in told["recommendations"]:
        fitted = regraft(
            "fit",
            photos,
            "--plan",
            f"p/plan-{choice['budget']}.toml",
            "-q",
            "--out",
            f"fitted-{choice['budget']}",
            "--json",
        )
        scores = json.loads(fitted.out)
        assert scores["val"]["accuracy"] == choice["accuracy"]
        assert scores["val"]["ci95"] == choice["ci95"]
        assert scores["split_digest"] == told["split_digest"]
        assert scores["technique"] == f"probe-{choice['budget']}"
        promised += 1
    assert promised == 3
    compared = json.loads(
        regraft("compare", photos, "--from-probe", "p", "-q", "--out", "c", "--json").out
    )
    assert {
        name for one in compared["rows"] for name in one["name"].removeprefix("probe-").split("-")
    } == {"fastest", "balanced", "best"}
    assert (
        max(one["val"]["accuracy"] for one in compared["rows"])
        == told["recommendations"][-1]["accuracy"]
    )
    shown = regraft("probe", photos, *TINY, "--resolutions", "16,32")
    assert "the test part is shut" in shown.out
    assert told["verdict"] in shown.out
    assert Path("probe/photos/probe.json").is_file()


def test_probe_runs_the_network_once_a_cell_and_never_reads_a_test_image(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.data.load import load_dataset

    dataset = load_dataset(photos, Path("home"))
    names, read = reading(dataset, monkeypatch)
    passes, together = list[int](), extract._chunks

    def counted(*given):  # type: ignore[no-untyped-def]
        passes.append(len(given[0]))
        return together(*given)

    monkeypatch.setattr(extract, "_chunks", counted)
    first = api.probe(dataset, ["test_resnet"], [16, 32], weights="random", out="p")
    assert read
    assert not set(read) & {names[row] for row in dataset.split().test}
    places = len(first.told["places"]) // 2
    assert len(passes) == 4  # two resolutions, train and val
    assert min(passes) == max(passes) >= places - 2
    again = api.probe(dataset, ["test_resnet"], [16, 32], weights="random", out="q")
    assert len(passes) == 4
    assert again.told["places"] == first.told["places"]
    api.fit(dataset, "linear-probe", "test_resnet", weights="random", resolution=32, out="r")
    assert len(passes) == 4  # what the probe kept is what a linear probe takes


def test_finished_runs_tell_how_well_the_scores_rank_them(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    for side in (16, 24, 32):
        words = (
            "--technique",
            "fine-tune",
            "--backbone",
            "test_resnet",
            "--weights",
            "random",
            "--set",
            "phases.0.epochs=3",
            "--set",
            f"phases.0.lr={side / 1e4}",
        )
        assert (
            regraft(
                "fit", photos, *words, "--resolution", side, "-q", "--out", f"runs/at-{side}"
            ).code
            == 0
        )
    other = write_folder(Path("other"), toy(90, seed=5))
    assert (
        regraft(
            "fit",
            other,
            "--technique",
            "fine-tune",
            "--backbone",
            "test_resnet",
            "--weights",
            "random",
            "--set",
            "phases.0.epochs=1",
            "-q",
            "--out",
            "runs/other",
        ).code
        == 0
    )
    (list_runs(Path("runs"))[0] / "predictions.npz").rename("kept.npz")
    told = json.loads(regraft("probe", photos, *TINY, "--resolutions", "16,24,32", "--json").out)
    assert told["runs"] == 2  # neither the one on other images, nor one without its predictions
    Path("kept.npz").rename(list_runs(Path("runs"))[0] / "predictions.npz")
    told = json.loads(regraft("probe", photos, *TINY, "--resolutions", "16,24,32", "--json").out)
    assert told["runs"] == 3
    for path, accuracy in zip(
        sorted(Path("runs").glob("at-*")), (0.5, 0.6, 0.7), strict=True
    ):  # twelve images give no order to rely on
        scores = json.loads((path / "scores.json").read_text())
        (path / "scores.json").write_text(
            json.dumps({**scores, "val": {**scores["val"], "accuracy": accuracy}})
        )
    told = json.loads(regraft("probe", photos, *TINY, "--resolutions", "16,24,32", "--json").out)
    assert {one["technique"] for one in told["hit_rate"]} == {"fine-tune"}
    assert all(-1 <= one["kendall"] <= 1 and one["runs"] == 3 for one in told["hit_rate"])
    for plan in Path("runs").glob("at-*/plan.toml"):  # the same runs as if from other weights
        plan.write_text(plan.read_text().replace('weights = "random"', 'weights = "mine.pth"'))
    assert (
        json.loads(regraft("probe", photos, *TINY, "--resolutions", "16,24,32", "--json").out)[
            "runs"
        ]
        == 0
    )


def test_a_broken_run_that_nobody_named_is_left_out_and_a_named_one_is_an_error(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    Path("runs/broken").mkdir(parents=True)
    Path("runs/broken/plan.toml").write_text("backbone = 3")
    Path("runs/broken/scores.json").write_text("{")
    assert (
        json.loads(regraft("probe", photos, *TINY, "--resolutions", "16", "--json").out)["runs"]
        == 0
    )
    named = regraft("probe", photos, *TINY, "--resolutions", "16", "--runs", "runs", "--out", "p")
    assert named.code == 2
    assert "The run in" in named.err


def test_a_budget_sees_few_images_first_and_says_what_it_dropped(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_FEWEST", 12)
    monkeypatch.setattr(matrix, "_FEWEST_A_CLASS", 4)
    dataset = workflow.named.sources.load(photos, Path("home"))
    seen: list[tuple[tuple[str, int], int]] = []
    judge = matrix._Work._judge

    def counted(self, key, train, val):  # type: ignore[no-untyped-def]
        seen.append((key, len(train)))
        judge(self, key, train, val)

    monkeypatch.setattr(matrix._Work, "_judge", counted)
    monkeypatch.setattr(
        halving, "images", lambda costs, left, count, most: {4: 20, 2: 40}.get(count, most)
    )
    monkeypatch.setattr(
        matrix.keeping, "seconds", lambda model, *_: model.resolution * 1e-6
    )  # else noise may make another cell the cheapest
    done = api.probe(
        dataset, ["test_resnet"], [16, 24, 32, 40], weights="random", budget="10m", out="p"
    )
    assert [count for _, count in seen] == [12] + [20] * 4 + [40] * 2 + [
        len(dataset.split().train)
    ]  # what judging costs is learnt first
    assert seen[0][0][1] == 16
    assert len(done.told["dropped"]) == 3
    assert all("its best place had" in one["why"] for one in done.told["dropped"])
    assert {row["images"] for row in done.told["places"]} == {20, 40, len(dataset.split().train)}
    last = {row["resolution"] for row in done.told["places"] if row["images"] > 40}
    assert {one["resolution"] for one in done.told["recommendations"]} == last
    assert {row["kind"] for row in done.told["places"] if row["images"] > 40} > {"single"}
    assert done.told["learning_curve"]["forecast"]


def test_a_budget_that_is_used_up_leaves_out_what_is_not_needed_and_says_so(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_FEWEST", 12)
    monkeypatch.setattr(matrix, "_FEWEST_A_CLASS", 4)
    within = matrix._Work.within

    def late(self, budget, began):  # type: ignore[no-untyped-def]
        cells = within(self, budget, began)
        self.deadline = 0.0
        return cells

    monkeypatch.setattr(matrix._Work, "within", late)
    heard = Heard()
    done = api.probe(
        str(photos),
        ["test_resnet"],
        [16, 24],
        weights="random",
        budget="10m",
        out="p",
        reporter=heard,
    )
    assert {row["kind"] for row in done.told["places"]} == {"single"}
    assert done.told["learning_curve"]["forecast"] is None
    assert any("The budget is used up: places side by side" in text for text in heard.said)
    assert "The budget is used up: there is no learning curve." in heard.said
    assert set(done.plans) == {"fastest", "balanced", "best"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--budget", "0.01s"), "The smallest useful run is test_resnet at 16 px with"),
        (("--budget", "soon"), "--budget 'soon' is no time"),
        (("--resolutions", "big"), "--resolutions big was given. Expected sides in pixels"),
        (
            ("--resolutions", "4"),
            "--resolutions 4 was given. Expected sides in pixels from 8 to 4096",
        ),
        (("--backbones", ""), "--backbones '' names nothing. Expected names separated by commas"),
        (("--resolutions", " , "), "names nothing"),
        (("--backbones", "resnet5"), "No backbone is called 'resnet5'"),
        (("--runs", "nowhere"), "--runs nowhere is no folder"),
        (
            ("--out", "taken"),
            "taken is not empty. Expected a new or empty folder. Pass --overwrite to replace it",
        ),
        (("--out", "file.txt"), "file.txt is a file. Expected a folder for the probe"),
        (("--train-images", "1"), "--train-images 1 was given"),
    ],
)
def test_every_mistake_is_one_sentence_and_exit_2(
    regraft, photos: Path, words: tuple[str, ...], says: str
) -> None:  # type: ignore[no-untyped-def]
    Path("file.txt").write_text("")
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("precious")
    given = {
        "--backbones": "test_resnet",
        "--weights": "random",
        "--resolutions": "16",
        "--out": "p",
        **dict([words]),
    }
    result = regraft("probe", photos, *[word for pair in given.items() for word in pair], "-q")
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err
    assert Path("taken/mine.txt").read_text() == "precious"
    assert not Path("p").exists()


def test_what_cannot_be_traced_is_skipped_with_the_reason_and_the_rest_goes_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft import backbone
    from regraft.models.backbone import load_backbone

    real = load_backbone

    def load(name: str, *given: object) -> object:
        if name == "test_vit":
            raise api.UserError("VisionTransformer cannot be traced by torch.fx (no).")
        return real(name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone, "load", load)
    done = api.probe(str(photos), ["test_vit", "test_resnet"], [32], weights="random", out="p")
    assert {row["backbone"] for row in done.told["places"]} == {"test_resnet"}
    assert done.told["skipped"] == [
        {"name": "test_vit 32 px", "error": "VisionTransformer cannot be traced by torch.fx (no)."}
    ]
    monkeypatch.setattr(backbone, "facts", lambda name: load(name, "random").facts)  # type: ignore[attr-defined]
    usual = api.probe(str(photos), ["test_vit", "test_resnet"], weights="random", out="u")
    assert [one["name"] for one in usual.told["skipped"]] == ["test_vit"]
    with pytest.raises(
        api.UserError,
        match="Nothing can be probed. test_vit 32 px: VisionTransformer cannot be traced",
    ):
        api.probe(str(photos), ["test_vit"], [32], weights="random", out="q")
    assert not Path("q").exists()


def test_a_probe_that_is_refused_leaves_the_old_one_and_a_class_layer_that_cannot_be_had_costs_leep_only(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft import backbone

    api.probe(str(photos), ["test_resnet"], [16], weights="random", out="p")
    with pytest.raises(api.UserError, match="is too short"):
        api.probe(
            str(photos),
            ["test_resnet"],
            [16],
            weights="random",
            out="p",
            budget="0.01s",
            overwrite=True,
        )
    assert Path("p/probe.json").is_file()

    def offline(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(backbone, "classifier", offline)
    heard = Heard()
    done = api.probe(
        str(photos),
        ["test_resnet"],
        [16, 24],
        weights="random",
        out="p",
        overwrite=True,
        reporter=heard,
    )
    assert [text for text in heard.said if "LEEP" in text] == [
        "Doing without LEEP: the class layer of test_resnet cannot be had (OSError)."
    ]
    assert all(row["leep"] is None for row in done.told["places"])


def test_a_comparison_from_a_folder_without_a_probe_is_refused(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = regraft("compare", photos, "--from-probe", "nowhere", "-q")
    assert result.code == 2
    assert (
        "There is no probe in nowhere. Expected a folder that `regraft probe` wrote." in result.err
    )


def test_three_images_a_class_are_enough(regraft, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    few = write_folder(tmp_path / "few", toy(6, classes=2))
    done = regraft(
        "probe",
        few,
        "--backbones",
        "test_resnet",
        "--weights",
        "random",
        "--resolutions",
        "32",
        "-q",
        "--json",
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert {one["kind"] for one in told["places"]} >= {"single"}
    assert len(told["recommendations"]) == 3


def test_networks_of_every_kind_can_be_probed(photos: Path) -> None:
    names = ["test_vit", "test_efficientnet", "test_convnext"]
    done = api.probe(str(photos), names, [32], weights="random", out="p", train_images=40)
    assert {row["backbone"] for row in done.told["places"]} | {
        one["name"].split()[0] for one in done.told["skipped"]
    } == set(names)
    assert len({row["backbone"] for row in done.told["places"]}) >= 2
