"""Runs, their records, and what survives when something dies."""

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch import nn

from qsal_helpers import metrics, study
from qsal_helpers.checkpoints import save_model
from qsal_helpers.data import ImageData, Split
from qsal_helpers.guided import SaliencyGuided
from qsal_helpers.saliency import saliency_map
from qsal_helpers.study import (
    GAINS,
    METHODS,
    RecordError,
    Run,
    agreement,
    execute,
    load_records,
    main_records,
    noise_floor,
    plan,
    read_record,
    run_all,
    summary,
    table,
    values_by_precision,
    with_measures,
)
from qsal_helpers.training import cross_entropy, fit

TINY = Run("mnist", size=500, model="lenet5", epochs=1, explained=4)
LONGER = dataclasses.replace(TINY, precision="w2a2", objective="guided", epochs=6, ramp_steps=10)
TAUGHT = dataclasses.replace(
    TINY, precision="w2a2", objective="guided", start="twin", distilled=True, explained=5, seed=1
)
LONG = dataclasses.replace(LONGER, epochs=12)  # long enough to be killed on the way


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Records of two runs, one of which must fail, made by processes."""
    folder = tmp_path_factory.mktemp("records")
    runs = [dataclasses.replace(TINY, model="no such model"), TINY]
    return folder, runs, run_all(runs, folder, workers=2, progress=False)


def figures(record):
    return {key: record[key] for key in ("accuracy", "history", "alphas", "metrics", "confidence")}


# ---------------------------------------------------------------- a run


def test_no_two_runs_of_the_plan_share_an_id():
    runs = {run for group in plan().values() for run in group}
    assert len({run.id for run in runs}) == len(runs) > 150


def test_a_field_added_later_leaves_the_ids_of_earlier_runs_as_they_are():
    fields = [(f.name, f.type, f) for f in dataclasses.fields(Run)]
    Later = dataclasses.make_dataclass("Later", [*fields, ("added", int, 3)], bases=(Run,), frozen=True)
    for run in plan()["ratios"]:
        assert Later(**dataclasses.asdict(run)).id == run.id
        assert Later(**dataclasses.asdict(run), added=4).id != run.id


def test_a_record_from_before_a_field_was_added_has_its_default_in_the_table(done, tmp_path):
    folder, (_, good), _ = done
    record = read_record(folder, good)
    del record["run"]["start"], record["run"]["distilled"]
    (tmp_path / f"{good.id}.json").write_text(json.dumps(record))
    assert load_records(tmp_path)[["start", "distilled"]].values.tolist() == [["scratch", False]]


@pytest.mark.parametrize(
    "run", [Run(), TINY, LONGER, TAUGHT, plan()["cifar10"][-1], plan()["ends-mini"][0]], ids=lambda run: run.id
)
def test_the_command_of_a_run_asks_for_that_run(run, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "run_all", lambda runs, folder, workers: asked.extend(runs) or [])
    monkeypatch.setattr(study, "read_record", lambda folder, run: {"status": "failed", "id": "", "reason": ""})
    study.main(shlex.split(run.command)[3:])
    assert asked == [run]


def test_the_objective_of_a_run_is_what_its_fields_say():
    assert TINY.build_objective() is cross_entropy
    published = dataclasses.replace(TINY, objective="published", mask_ratio=0.3)
    assert published.build_objective() == SaliencyGuided.as_published(0.3)
    assert LONGER.build_objective() == SaliencyGuided(ramp_steps=10)
    with pytest.raises(ValueError, match="plain, guided, published, "):
        dataclasses.replace(TINY, objective="magic").build_objective()


@pytest.mark.parametrize(
    "name, choice",
    [
        ("frozen", {"freeze_statistics": True}),
        ("magnitude", {"rank_by": "magnitude"}),
        ("detached", {"detach_clean": True}),
        ("train", {"eval_saliency": False}),
        ("loss", {"saliency": "loss", "eval_saliency": False}),
    ],
)
def test_a_variant_of_the_published_procedure_differs_from_it_in_its_own_choice_alone(name, choice):
    variant = dataclasses.replace(TINY, objective=f"published-{name}", mask_ratio=0.3).build_objective()
    assert variant == dataclasses.replace(SaliencyGuided.as_published(0.3), **choice)


def test_the_bits_of_the_end_layers_are_those_of_the_run(digits):
    model = Run(precision="w4a4", first=2, last=3).build(digits)
    bits = [m.weight_bits for m in model.modules() if hasattr(m, "weight_bits")]
    assert (bits[0], bits[-1], set(bits[1:-1])) == (2, 3, {4})


@pytest.mark.parametrize(("start", "distilled"), [("twin", True), ("twin", False), ("scratch", True)])
def test_a_run_starts_from_the_plain_fp32_network_of_its_seed_or_learns_from_it(start, distilled, monkeypatch):
    trained = []

    def noting_fit(model, data, objective, **options):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trained.append((before, model, objective, (options["augment"], options["bfloat16"])))
        return fit(model, data, objective, **options)

    monkeypatch.setattr(study, "fit", noting_fit)
    flags = {"augment": distilled, "bfloat16": not distilled}
    run = dataclasses.replace(TAUGHT, start=start, distilled=distilled, **flags)
    record, model = study.execute(run)
    (_, twin, plain, twins), (before, student, objective, students) = trained
    assert run.twin == dataclasses.replace(TINY, seed=1, explained=500, **flags)
    assert (plain, student) == (cross_entropy, model)
    assert twins == students == tuple(flags.values())
    same = [torch.equal(before[name], value) for name, value in twin.state_dict().items()]
    assert all(same) if start == "twin" else not any(same)
    assert (
        (objective.teacher, objective.objective) == (twin, SaliencyGuided())
        if distilled
        else objective == SaliencyGuided()
    )
    assert str(model.precision) == "w2a2" and len(record["history"]["loss"]) == run.epochs


def test_a_killed_run_with_a_twin_goes_on_to_the_record_of_an_undisturbed_one(tmp_path, monkeypatch):
    run, fits = dataclasses.replace(TAUGHT, epochs=2), []
    expected, _ = study.execute(run)

    def killed_fit(model, *given, **options):
        fits.append(model)
        stop = {} if len(fits) != 2 else {"callback": lambda progress: 1 / (2 - progress.epoch), "callback_every": 1}
        return fit(model, *given, **options, **stop)

    monkeypatch.setattr(study, "fit", killed_fit)
    with pytest.raises(ZeroDivisionError):
        study.execute(run, resume=tmp_path / "unfinished")
    steps = []
    monkeypatch.setattr(
        study, "fit", lambda *a, **o: fit(*a, **o, callback=lambda p: steps.append(p.epoch), callback_every=1)
    )
    record, _ = study.execute(run, resume=tmp_path / "unfinished")
    assert figures(record) == figures(expected)
    assert set(steps) == {2}


def test_a_run_without_a_twin_trains_one_network_and_an_unknown_start_is_refused(digits, monkeypatch):
    calls = []
    monkeypatch.setattr(study, "fit", lambda *given, **options: calls.append(given) or fit(*given, **options))
    study.execute(TINY)
    assert len(calls) == 1 and TINY.twin is None
    with pytest.raises(ValueError, match="start must be one of scratch, twin; got 'afar'"):
        study.execute(dataclasses.replace(TINY, start="afar"))


@pytest.fixture(scope="module")
def digits():
    return study.load_data("mnist", 500)


# ---------------------------------------------------------------- the records


def test_a_failing_run_is_recorded_with_its_reason_and_does_not_stop_the_others(done):
    _, (bad, good), records = done
    assert [record["status"] for record in records] == ["failed", "done"]
    assert "no such model" in records[0]["reason"]
    assert [record["id"] for record in records] == [bad.id, good.id]


def test_a_record_says_what_its_model_does(done, digits):
    folder, (_, good), (_, record) = done
    model = study.load_model(folder / f"{good.id}.safetensors")
    # The file holds the weights in 16 bits, so an image on the edge may change sides.
    assert abs(study.evaluate(model, digits) - record["accuracy"]) < 0.01
    assert record["metrics"]["gradient: gini"]["images"] == good.explained
    assert record["packed_bytes"] == 4 * record["parameters"]
    assert Run(**record["run"]) == good


@pytest.mark.filterwarnings("ignore:validation accuracy fell")  # the training is too short to be a good one
def test_each_figure_of_a_record_is_that_of_the_model_and_of_the_epoch_that_is_kept(digits, monkeypatch):
    def first_epoch_is_kept(model, *args, **options):
        history = fit(model, *args, **options)
        model.fc3.weight.data *= 30  # after so short a training the logits are too small to tell measures apart
        history.seconds, history.best_epoch = [10.0, 20.0], 1
        kept.update({name: values[0] for name, values in history.alphas.items()})
        return history

    kept = {}
    monkeypatch.setattr(study, "fit", first_epoch_is_kept)
    record, model = execute(dataclasses.replace(TINY, precision="w2a2", epochs=2, explained=5))
    found = {name: value["mean"] for name, value in record["metrics"].items() if value["images"]}
    images = digits.test.images[:5]
    x, mask, rows = digits.normalise(images), metrics.object_mask(images), study.describe(model)
    target = model(x).argmax(1)
    expected = {
        "gradient: infidelity, normalized": metrics.infidelity(
            model, x, saliency_map(model, x, target, absolute=False), target, normalize=True
        ),
        "gradient: sensitivity": metrics.sensitivity_max(model, x, target),
        "gradient: randomisation": metrics.randomisation_check(model, x, target),
    }
    for method in ("gradient", "random"):
        maps = saliency_map(model, x, target, method)
        expected[f"{method}: foreground mass"] = metrics.foreground_mass(maps, mask)
        expected[f"{method}: pointing game"] = metrics.pointing_game(maps, mask)
        expected[f"{method}: entropy"] = metrics.entropy(maps)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values.nanmean().item(), abs=1e-4), name
    for name in ("parameters", "packed_bytes", "bit_operations"):
        assert record[name] == sum(row[name] for row in rows), name
    assert record["alphas"] == pytest.approx(kept, abs=1e-5) and record["seconds"] == 30


def test_the_same_run_gives_the_same_record_except_for_seconds(done):
    _, (_, good), (_, record) = done
    torch.set_num_threads(record["machine"]["threads"])
    again, _ = execute(good)
    assert {**again, "seconds": record["seconds"]} == record


def test_what_has_a_record_is_not_done_again(done, monkeypatch):
    folder, runs, records = done
    started = []
    monkeypatch.setattr(study, "_in_processes", lambda missing, *_: started.extend(missing) or missing)
    assert run_all(runs, folder, progress=False) == records and started == []


def test_nothing_but_records_and_models_is_left_in_the_folder(done):
    folder, (_, good), _ = done
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert list(folder.glob("*.safetensors")) == [folder / f"{good.id}.safetensors"]


def test_the_table_of_records_has_the_finished_runs_only(done):
    folder, (_, good), (_, record) = done
    with pytest.raises(FileNotFoundError, match="there is no folder .*run_all"):
        load_records(folder / "nowhere")
    [row] = load_records(folder).to_dict("records")
    assert (row["id"], row["accuracy"], row["seed"], row["best_epoch"]) == (good.id, record["accuracy"], 0, 1)
    assert row["random: entropy"] == record["metrics"]["random: entropy"]["mean"]


def edited(record, change):
    return json.dumps({**record, "run": {**record["run"], **change}})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: json.dumps(record)[:-20],
        lambda record: "",
        lambda record: "[1, 2]",
        lambda record: json.dumps({"id": record["id"]}),
        lambda record: edited(record, {"seed": 9}),
        lambda record: edited(record, {"unknown": 1}),
        lambda record: json.dumps({**record, "status": "splendid"}),
        lambda record: json.dumps({key: record[key] for key in record if key != "accuracy"}),
    ],
    ids=["truncated", "empty", "a list", "no run", "another seed", "unknown field", "unknown status", "no accuracy"],
)
def test_a_damaged_or_edited_record_is_refused_by_name(done, tmp_path, spoil):
    _, (_, good), (_, record) = done
    path = tmp_path / f"{good.id}.json"
    path.write_text(spoil(record))
    with pytest.raises(RecordError, match=good.id):
        read_record(tmp_path, good)


def test_measure_tells_deletion_from_insertion_and_the_methods_and_fills_apart():
    """On white images the blur changes nothing, and a map with few large pixels beats the random one with black."""
    images = torch.full((30, 1, 12, 12), 255, dtype=torch.uint8)
    images[:, :, 11, 11] = 0  # the baseline of integrated gradients is the darkest value there is
    split = Split(images, torch.arange(30) % 2)
    data = ImageData("white", split, split, ("a", "b"), (0.25,), (0.5,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2, bias=False)).eval()
    weight = model[1].weight.data
    weight.zero_()
    weight[0, :14], weight[0, 14] = torch.linspace(0.2, 0.4, 14), -0.1
    measured = study.measure(model, data, 30)
    found = {name: value["mean"] for name, value in measured["metrics"].items() if value["images"]}
    assert measured["confidence"] == pytest.approx((1.5 * weight[0].sum()).sigmoid().item(), abs=1e-5)
    assert found["gradient: infidelity, normalized"] < 1e-4 and found["gradient: sensitivity"] < 1e-4
    for method in ("gradient", "input_x_gradient", "integrated_gradients"):
        assert found[f"{method}: gini"] > 0.85 and found[f"{method}: entropy"] < 3
        assert found[f"{method}: deletion, black"] < found["random: deletion, black"] - 0.2
        assert found[f"{method}: insertion, black"] > found["random: insertion, black"] + 0.2
        for curve in ("deletion", "insertion"):
            assert found[f"{method}: {curve}, blur"] == pytest.approx(measured["confidence"], abs=1e-4)
    assert found["random: gini"] < 0.4 and found["random: entropy"] > 4
    x = data.normalise(images)
    curve = metrics.deletion_auc(model, x, saliency_map(model, x, 0, "random"), 0, fill=-0.5)  # black, normalised
    assert found["random: deletion, black"] == pytest.approx(curve.mean().item(), abs=1e-4)


def test_a_summary_leaves_out_what_is_not_a_number_and_says_how_many_images_are_left():
    values = torch.cat([torch.arange(101.0), torch.tensor([float("nan"), float("inf")])])
    found = summary(values)
    assert found["images"] == 101 and found["mean"] == found["median"] == 50
    assert (found["q05"], found["q25"], found["q75"], found["q95"]) == (5, 25, 75, 95)
    assert found["sd"] == pytest.approx(np.arange(101).std(), abs=1e-5)
    assert summary(torch.tensor([float("nan")])) == {"images": 0}


def test_only_the_plans_main_runs_enter_the_paper_style_table():
    runs = [*(Run(seed=s) for s in range(3)), Run(precision="w2a2"), Run(scheme="dorefa"), Run(mask_ratio=0.9)]
    frame = pd.DataFrame([dataclasses.asdict(run) | {"accuracy": 0.5 + 0.1 * run.seed} for run in runs])
    found = table(frame)
    assert found.loc[("fashion-mnist", "full", "plain"), "fp32"] == "0.600 ± 0.100 (3)"
    assert found.loc[("fashion-mnist", "full", "plain"), "w2a2"] == "0.500 (1)"
    assert list(found.columns) == ["fp32", "w2a2"] and len(found) == 1


def test_a_record_of_a_later_version_is_not_called_damaged(done, tmp_path):
    _, (_, good), (_, record) = done
    (tmp_path / f"{good.id}.json").write_text(edited(record, {"optimizer": "adam"}))
    with pytest.raises(RecordError, match="another version of qsal_helpers: this one knows no optimizer") as raised:
        read_record(tmp_path, good)
    assert "delete" not in str(raised.value)


def test_a_damaged_record_is_told_of_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / f"{TINY.id}.json").write_text("")
    monkeypatch.setattr(study, "_in_processes", lambda *_: pytest.fail("it went on"))
    with pytest.raises(RecordError, match=TINY.id):
        run_all([LONGER, TINY], tmp_path, progress=False)
    with pytest.raises(SystemExit, match=f"{TINY.id}.json is no record of the study"):
        study.main(["list", "--folder", str(tmp_path), *shlex.split(TINY.command)[6:]])


def test_two_runs_that_happen_to_have_one_id_are_told_apart(tmp_path):
    one, other = Run(weight=6.716), Run(weight=44.483)
    assert one.id == other.id
    write_record(tmp_path, one)
    assert read_record(tmp_path, one)["status"] == "done"
    with pytest.raises(RecordError, match="holds another run, whose id happens to be the same"):
        read_record(tmp_path, other)


@pytest.mark.parametrize("fields", [{"seed": 1.0}, {"seed": np.int64(1)}, {"augment": 1}, {"epochs": True}])
def test_a_number_of_another_type_is_refused_for_it_would_make_an_equal_run_with_another_name(fields):
    with pytest.raises(TypeError, match="must be of type"):
        Run(**fields)


def test_an_empty_folder_makes_empty_tables(tmp_path):
    records = load_records(tmp_path)
    assert records.empty and table(records.assign(accuracy=[])).empty and main_records(records).empty


# ---------------------------------------------------------------- what the records say


def test_a_measure_counts_as_better_or_worse_where_the_interval_of_its_paired_difference_leaves_out_0():
    areas = [f"{kind}, {fill}" for kind in ("deletion", "insertion") for fill in ("black", "blur")]
    same = {f"{method}: {area}": 0.5 for method in ("gradient", "random") for area in areas} | {"set": "fashion-mnist"}
    same |= {"gradient: gini": 0.5, "gradient: foreground mass": 0.5, "gradient: sensitivity": 0.5}
    changed = {
        "gradient: deletion, black": [-0.2, -0.21, -0.19],  # a smaller area: better
        "gradient: insertion, blur": [-0.2, -0.21, -0.19],
        "gradient: sensitivity": [0.2, 0.21, 0.19],  # less steady: worse
        "gradient: gini": [0.2, 0.21, 0.19],
        "gradient: foreground mass": [0.2, -0.2, 0.01],
    }
    rows = []
    for seed in range(3):
        rows.append(dataclasses.asdict(Run(seed=seed)) | same | {"accuracy": 0.9 + seed / 100})
        moved = {name: same[name] + differences[seed] for name, differences in changed.items()}
        rows.append(dataclasses.asdict(Run(precision="w2a2", objective="guided", seed=seed)) | same | moved)
        rows[-1]["accuracy"] = 0.8
    found = study.against_fp32(pd.DataFrame(rows))
    assert found["fashion-mnist"].to_dict() == {
        "fp32, plain": "91.00% (3)",
        "w2a2, guided": "80.00% 2 better, 2 worse (3)",
    }
    only_guided = pd.DataFrame([row for row in rows if row["objective"] == "guided"])
    assert study.against_fp32(only_guided.drop(columns="gradient: foreground mass"))["fashion-mnist"].to_dict() == {
        "w2a2, guided": "80.00% (3)"
    }


def test_nothing_is_counted_where_no_two_seeds_are_paired_or_their_difference_has_no_spread():
    areas = [f"{kind}, {fill}" for kind in ("deletion", "insertion") for fill in ("black", "blur")]
    same = {f"{method}: {area}": 0.5 for method in ("gradient", "random") for area in areas} | {"accuracy": 0.8}
    same |= {"set": "fashion-mnist", "gradient: foreground mass": 0.5, "gradient: sensitivity": 0.5}
    row = lambda precision, seed, gini: (
        dataclasses.asdict(Run(precision=precision, seed=seed)) | same | {"gradient: gini": gini}
    )
    plain = [row("fp32", 0, 0.4), row("fp32", 1, 0.5)]
    for others, wanted in (
        ([row("w2a2", 2, 0.6), row("w2a2", 3, 0.7)], "80.00% (2)"),
        ([row("w2a2", 1, 0.6), row("w2a2", 2, 0.7)], "80.00% (2)"),
        ([row("w2a2", 0, 0.525), row("w2a2", 1, 0.625)], "80.00% 0 better, 0 worse (2)"),
    ):
        assert study.against_fp32(pd.DataFrame(plain + others))["fashion-mnist"]["w2a2, plain"] == wanted


def test_a_gain_is_how_much_better_than_the_random_map_and_its_room_how_much_better_it_could_be():
    areas = {"deletion, black": (0.4, 0.1), "deletion, blur": (0.5, 0.6), "insertion, black": (0.2, 0.5)}
    areas |= {"insertion, blur": (0.6, 1.0)}
    columns = {f"random: {name}": [chance] for name, (chance, _) in areas.items()}
    records = pd.DataFrame(columns | {f"input_x_gradient: {name}": [own] for name, (_, own) in areas.items()})
    gains = {"deletion gain, black": 0.3, "deletion gain, blur": -0.1, "insertion gain, black": 0.3}
    gains |= {"insertion gain, blur": 0.4}
    shares = {"deletion gain, black": 0.75, "deletion gain, blur": -0.2, "insertion gain, black": 0.375}
    shares |= {"insertion gain, blur": 1.0}
    assert with_measures(records, "input_x_gradient")[GAINS].iloc[0].to_dict() == pytest.approx(gains)
    assert with_measures(records, "input_x_gradient", True)[GAINS].iloc[0].to_dict() == pytest.approx(shares)


def test_what_the_records_do_not_hold_of_a_method_is_missing_and_not_another_methods():
    areas = {f"{m}: {k}, {f}": [0.5] for m in METHODS for k in ("deletion", "insertion") for f in ("black", "blur")}
    records = pd.DataFrame(areas | {"gradient: gini": [0.6], "gradient: sensitivity": [0.7]})
    by_gradient = with_measures(records)
    assert by_gradient[["Gini", "sensitivity"]].iloc[0].tolist() == [0.6, 0.7] and by_gradient["on object"].isna().all()
    assert with_measures(by_gradient, "integrated_gradients")[["Gini", "sensitivity"]].isna().all(axis=None)


def test_a_series_has_the_precisions_in_order_and_leaves_out_what_has_no_value():
    rows = [
        ("guided", "w2a2", 1, 0.7),
        ("plain", "w2a2", 0, 0.8),
        ("plain", "fp32", 0, 0.9),
        ("plain", "fp32", 1, 0.95),
    ]
    records = pd.DataFrame([*rows, ("guided", "fp32", 0, math.nan)], columns=["objective", "precision", "seed", "Gini"])
    found = values_by_precision(records, "Gini")
    assert found == {"plain": {"fp32": [0.9, 0.95], "w2a2": [0.8]}, "guided": {"w2a2": [0.7]}}
    assert list(found["plain"]) == ["fp32", "w2a2"]
    by_ratio = records.assign(ratio=[0.5, 0.0, 0.0, 0.0, 0.5])
    assert values_by_precision(by_ratio, "Gini", [0.5], "ratio") == {0.5: {"w2a2": [0.7]}}


def test_the_noise_floor_spans_the_plain_fp32_networks_and_needs_two_of_them():
    rows = [("plain", "fp32", 0, 0.9), ("plain", "fp32", 1, 0.8), ("guided", "fp32", 0, 0.1), ("plain", "w2a2", 0, 0.2)]
    records = pd.DataFrame(rows, columns=["objective", "precision", "seed", "Gini"])
    assert noise_floor(records, ["Gini"]) == {"Gini": (0.8, 0.9)}
    assert noise_floor(records[1:], ["Gini"]) == {}


def test_a_command_whose_run_fails_says_so_and_does_not_end_as_if_all_were_well(tmp_path, capsys):
    arguments = ["run", "--folder", str(tmp_path), "--data", "mnist", "--size", "500", "--epochs", "0"]
    with pytest.raises(SystemExit, match="1 of 1 runs failed; their records say why"):
        study.main(arguments)
    assert "epochs must be" in capsys.readouterr().out


def test_runs_that_are_equal_have_one_name_and_their_command_makes_the_same_run():
    run = Run(objective="guided", mask_ratio=1, weight=2)
    assert run.id == Run(objective="guided", mask_ratio=1.0, weight=2.0).id
    assert "--mask-ratio 1.0 --weight 2.0" in run.command


def test_building_and_measuring_leave_the_random_numbers_and_the_mode_of_the_model_alone():
    data = study.load_data("mnist", 500)
    before = torch.get_rng_state()
    model = TINY.build(data).train()
    statistics = [buffer.clone() for buffer in model.buffers()]
    study.measure(model, data, 4)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(old, new) for old, new in zip(statistics, model.buffers(), strict=True))


def write_record(folder, run, without=None):
    """Write a finished record of the run in which every figure is 0.5, but for a measure that it does not have."""
    areas = [f"random: {kind}, {fill}" for kind in ("deletion", "insertion") for fill in ("black", "blur")]
    record = {
        "run": dataclasses.asdict(run),
        "id": run.id,
        "command": "",
        "status": "done",
        "accuracy": 0.5,
        "seconds": 1,
    }
    record["history"] = {"best_epoch": 1}
    record["metrics"] = {name: {"mean": 0.5} for name in (*study.SHOWN, *areas) if name != without}
    (folder / f"{run.id}.json").write_text(json.dumps(record))


def test_a_set_is_named_by_its_data_and_its_size_so_that_only_a_mini_set_counts_as_one(tmp_path):
    for size in ("full", "mini", 500):
        write_record(tmp_path, Run("mnist", size))
    records = load_records(tmp_path)
    assert records.groupby("size").set.agg(set).to_dict() == {
        "full": {"mnist"},
        "mini": {"mnist-mini"},
        500: {"mnist-500"},
    }
    assert study.against_fp32(records).loc["fp32, plain"].to_dict() == {
        "mnist-mini": "50.00% (1)",
        "mnist": "50.00% (1)",
    }


def test_the_table_holds_only_the_group_and_the_seeds_that_were_asked_for(tmp_path, capsys):
    for run in plan()["mnist"][:3] + plan()["fashion-mnist"][:3] + [plan()["mnist"][12]]:
        write_record(tmp_path, run)
    study.main(["table", "--folder", str(tmp_path), "--group", "mnist", "--seeds", "1"])
    shown = capsys.readouterr().out
    assert "0.500 (1)" in shown and "fashion-mnist" not in shown and "(2)" not in shown


def test_a_precision_that_the_plan_does_not_have_is_a_column_of_the_table():
    records = pd.DataFrame([dataclasses.asdict(Run(precision=p)) | {"accuracy": 0.5} for p in ("w3a3", "fp32")])
    assert list(table(records).columns) == ["fp32", "w3a3"]


def test_the_table_leaves_out_a_measure_that_no_record_has(tmp_path, capsys):
    write_record(tmp_path, plan()["cifar10"][0], without="gradient: foreground mass")
    study.main(["table", "--folder", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "gradient: gini" in shown and "foreground mass" not in shown and "nan" not in shown


def test_a_list_names_every_run_of_a_group_and_whether_it_is_to_do(done, monkeypatch, capsys):
    folder, (bad, good), records = done
    monkeypatch.setattr(study, "plan", lambda: {"mine": [good, LONGER, bad], "another": [TAUGHT]})
    study.main(["list", "--folder", str(folder), "--group", "mine"])
    finished, waiting, failed = capsys.readouterr().out.splitlines()
    assert finished.startswith(f"{good.id}: accuracy {records[1]['accuracy']:.2%}, ")
    assert waiting == f"{LONGER.id}: to do"
    assert failed == f"{bad.id}: failed: {records[0]['reason']}"


def test_the_agreement_of_a_group_and_its_twins_becomes_a_table_of_its_own(done, monkeypatch, tmp_path):
    folder, (_, good), _ = done
    changes = ({"seed": 1}, {"start": "twin"}, {"seed": 2})
    other, twin, foreign = (dataclasses.replace(good, **change) for change in changes)
    for run in (good, other, twin, foreign):
        shutil.copy(folder / f"{good.id}.safetensors", tmp_path / f"{run.id}.safetensors")
    monkeypatch.setattr(study, "plan", lambda: {"mine": [good, other], "twin-mine": [twin], "another": [good, foreign]})
    study.main(["agree", "--folder", str(tmp_path), "--group", "mine"])
    (path,) = tmp_path.glob("*.csv")
    assert path.name == "agreement-mine.csv"
    assert pd.read_csv(path).equals(agreement([good, other, twin], tmp_path, progress=False))


def test_a_word_that_a_field_does_not_know_is_refused_before_a_record_is_made(tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main(["run", "--folder", str(tmp_path / "new"), "--objective", "guide"])
    assert "choose from 'plain', 'guided'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_list_that_is_not_read_to_its_end_ends_without_a_word():
    listing = [sys.executable, "-m", "qsal_helpers.study", "list"]
    process = subprocess.Popen(listing, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


def test_agreement_refuses_options_that_it_would_not_heed():
    with pytest.raises(SystemExit):
        study.main(["agree", "--seeds", "1"])


@pytest.mark.parametrize(
    "change",
    [
        *({"start": "Twin"}, {"precision": "w9a9x"}, {"objective": "guide"}, {"fill": "white"}),
        *({"precision": "w2a2", "scheme": "best"}, {"precision": "w2a2", "first": 1}, {"explained": 0}),
    ],
)
def test_a_run_with_a_mistyped_field_is_refused_before_its_twin_is_trained(change, monkeypatch):
    monkeypatch.setattr(study, "fit", lambda *args, **options: pytest.fail("something was trained"))
    run = dataclasses.replace(TINY, **{"objective": "guided", "start": "twin", "distilled": True} | change)
    with pytest.raises(ValueError, match=f"{next(reversed(change))}.*must be|reads like|bits must be"):
        execute(run)


def test_maps_agree_fully_with_those_of_an_equal_network_and_only_plain_fp32_ones_are_references(done, tmp_path):
    folder, (_, good), _ = done
    changes = ({"seed": 1}, {"start": "twin"}, {"objective": "guided"}, {"precision": "w2a2"})
    other, *rest = (dataclasses.replace(good, **change) for change in changes)
    for run in (good, other, *rest):
        shutil.copy(folder / f"{good.id}.safetensors", tmp_path / f"{run.id}.safetensors")
    found = agreement([good, other, *rest, LONGER], tmp_path, progress=False)
    pairs = [(run, good) for run in (other, *rest)] + [(run, other) for run in (good, *rest)]
    assert [(row.id, row.reference) for row in found.itertuples()] == [(a.id, b.id) for a, b in pairs]
    assert np.allclose(found[["rank correlation", "top-k overlap", "ssim"]], 1, atol=1e-4)


def test_the_agreement_of_two_networks_is_that_of_the_metrics_on_the_maps_of_one_class(tmp_path, digits):
    runs = [dataclasses.replace(TINY, explained=6, seed=seed) for seed in (0, 1)]
    x, models = digits.normalise(digits.test.images[:6]), []
    for run in runs:
        save_model(run.build(digits), tmp_path / f"{run.id}.safetensors")
        models.append(study.load_model(tmp_path / f"{run.id}.safetensors"))
    first, second = models
    target = second(x).argmax(1)
    assert not torch.equal(target, first(x).argmax(1))
    maps = [saliency_map(model, x, target) for model in (second, first)]
    row = agreement(runs, tmp_path, progress=False).set_index("reference").loc[runs[1].id]
    assert row["id"] == runs[0].id
    assert row["rank correlation"] == pytest.approx(metrics.rank_correlation(*maps).mean().item(), abs=1e-5)
    assert row["top-k overlap"] == pytest.approx(metrics.top_k_overlap(*maps).mean().item(), abs=1e-5)
    assert row["ssim"] == pytest.approx(metrics.ssim(*maps).mean().item(), abs=1e-5)


# ---------------------------------------------------------------- what survives


def command(folder, run, *more):
    """Return the command line of a run with one worker, in a folder of its own."""
    words = shlex.split(run.command)
    words[0], words[words.index("--folder") + 1] = sys.executable, str(folder)
    return [*words, "--workers", str(study._cores()), *more]


def test_a_run_killed_between_epochs_goes_on_to_the_record_of_an_undisturbed_one(tmp_path):
    [expected] = run_all([LONG], tmp_path / "undisturbed", workers=study._cores(), progress=False)
    folder = tmp_path / "killed"
    process = subprocess.Popen(command(folder, LONG), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    unfinished = folder / f"{LONG.id}.unfinished"
    while not unfinished.exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "the run was over before it could be killed"
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers and not alive, "the run went on without the command that had started it"
    assert not (folder / f"{LONG.id}.json").exists(), "the run was over before it could be killed"
    assert 0 < len(torch.load(unfinished, weights_only=True)["history"]["loss"]) < LONG.epochs
    [record] = run_all([LONG], folder, workers=study._cores(), progress=False)
    assert figures(record) == figures(expected)


def test_a_run_whose_figures_are_no_numbers_is_recorded_as_failed_for_that_reason(tmp_path):
    run = Run("mnist", size=9, model="lenet5", epochs=1, explained=4)  # too few for a validation image
    [record] = run_all([run], tmp_path, workers=1, progress=False)
    assert record["status"] == "failed" and "JSON" in record["reason"]


@pytest.mark.parametrize("bad", [{"objective": "guided", "mask_ratio": float("nan")}, {"data": "no/such"}])
def test_a_run_that_cannot_be_recorded_as_it_is_does_not_stop_the_others(bad, tmp_path):
    records = run_all([dataclasses.replace(TINY, **bad), TINY], tmp_path, workers=1, progress=False)
    assert [record["status"] for record in records] == ["failed", "done"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]


def test_a_run_that_fails_after_its_training_keeps_what_it_has_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_end_with_parent", lambda: None)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(study, "save_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
        study._work(TINY, tmp_path, threads=1)
    assert "no space left" in read_record(tmp_path, TINY)["reason"]
    (tmp_path / f"{TINY.id}.json").unlink()
    monkeypatch.setattr("qsal_helpers.training.batches", lambda *_, **__: pytest.fail("it trains again"))
    monkeypatch.setattr(study, "evaluate", lambda *_: 0.5)
    study._work(TINY, tmp_path, threads=1)
    assert read_record(tmp_path, TINY)["status"] == "done" and not list(tmp_path.glob("*.unfinished*"))


def test_a_run_that_another_command_has_finished_meanwhile_is_left_as_it_is(done, tmp_path, monkeypatch):
    folder, (_, good), _ = done
    shutil.copy(folder / f"{good.id}.json", tmp_path)
    (tmp_path / f"{good.id}.unfinished").write_text("rubbish")
    before = (tmp_path / f"{good.id}.json").read_bytes()
    monkeypatch.setattr(study, "_end_with_parent", lambda: None)
    study._work(good, tmp_path, threads=1)
    assert (tmp_path / f"{good.id}.json").read_bytes() == before


def test_a_process_that_is_killed_leaves_a_failed_record_and_the_next_run_is_done(tmp_path, monkeypatch):
    class Dying:
        """A process that dies at once for the first run."""

        def __init__(self, target, args):
            run, folder, threads = args
            self.process = context.Process(target=os._exit, args=(9,)) if run == LONGER else None
            self.process = self.process or context.Process(target=target, args=args)

        def __getattr__(self, name):
            return getattr(self.process, name)

    context = study.multiprocessing.get_context("spawn")
    monkeypatch.setattr(study.multiprocessing, "get_context", lambda kind: type("Context", (), {"Process": Dying}))
    records = run_all([LONGER, TINY], tmp_path, workers=1, progress=False)
    assert [record["status"] for record in records] == ["failed", "done"]
    assert "exit code 9" in records[0]["reason"]


@pytest.mark.filterwarnings("ignore:validation accuracy fell")  # the training is too short to be a good one
def test_a_cluster_gives_the_same_records_although_one_of_its_workers_is_killed(tmp_path):
    from dask.distributed import Client

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(study.__file__).parents[1])}
    address = tmp_path / "scheduler.json"
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    dask = [sys.executable, "-m", "dask"]
    options = ["--scheduler-file", str(address), "--no-dashboard"]
    started = [subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *options], **quiet)]
    worker = [*dask, "worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", *options]
    started += [subprocess.Popen(worker, **quiet) for _ in range(2)]
    runs, at_work = [LONG, dataclasses.replace(LONG, seed=1)], []
    try:
        while not address.exists():
            assert started[0].poll() is None, "the scheduler has ended"
            time.sleep(0.05)
        with Client(scheduler_file=str(address), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            pid_of = {pid: worker for worker, pid in client.run(os.getpid).items()}

            def kill_one():
                while not at_work:
                    time.sleep(0.05)
                    given = client.processing()
                    at_work.extend(pid for pid, worker in pid_of.items() if given[worker])
                os.kill(at_work[0], signal.SIGKILL)

            killer = threading.Thread(target=kill_one, daemon=True)
            killer.start()
            records = run_all(runs, tmp_path / "records", client=client, progress=False)
            killer.join(timeout=10)
            assert at_work, "no worker had anything to do"
            assert len(client.scheduler_info()["workers"]) == 1
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
    assert [record["status"] for record in records] == ["done", "done"]
    torch.set_num_threads(1)  # as the workers: another number of threads adds up in another order
    here, _ = execute(runs[0])
    assert figures(records[0]) == figures(here)


@pytest.fixture
def threads():
    """A cluster of one worker with two threads, in this process."""
    from dask.distributed import Client, LocalCluster

    options = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


def test_the_threads_of_a_worker_do_not_draw_from_each_others_random_numbers(threads, tmp_path):
    runs = [dataclasses.replace(TINY, seed=seed) for seed in range(3)]
    records = run_all(runs, tmp_path, client=threads, progress=False)
    assert [figures(record) for record in records] == [figures(execute(run)[0]) for run in runs]


def test_a_cluster_that_goes_away_marks_no_run_as_failed(tmp_path, monkeypatch):
    from concurrent.futures import CancelledError

    class Gone:
        """A client of such a cluster, and what it promised."""

        def submit(self, *_, **__):
            return self

        def result(self):
            raise CancelledError

    monkeypatch.setattr("dask.distributed.as_completed", list)
    with pytest.raises(CancelledError):
        run_all([TINY], tmp_path, client=Gone(), progress=False)
    assert not list(tmp_path.iterdir())


def test_a_run_that_differs_from_the_plans_in_anything_else_enters_no_cell_of_the_table():
    others = [{"model": "lenet5"}, {"epochs": 9}, {"augment": True}, {"explained": 4}, {"size": 500}, {"first": 2}]
    others.append({"bfloat16": True})
    runs = [Run(seed=0), Run(seed=7, objective="guided"), *(Run(seed=1, **other) for other in others)]
    runs.append(next(run for run in plan()["cifar10"] if (run.precision, run.objective) == ("fp32", "plain")))
    records = pd.DataFrame([dataclasses.asdict(run) | {"accuracy": 0.5} for run in runs])
    assert set(main_records(records, "epochs", "first").index) - set(main_records(records).index) == {3, 7}
    with pytest.raises(ValueError, match="a varied field must be one of data, size"):
        main_records(records, "mask_ration")
    found = table(records)
    assert found["fp32"].to_dict() == {
        ("fashion-mnist", "full", "plain"): "0.500 (1)",
        ("fashion-mnist", "full", "guided"): "0.500 (1)",
        ("cifar10", "full", "plain"): "0.500 (1)",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run --workers -1", "--workers must be at least 1"),
        ("run --workers 0", "--workers must be at least 1"),
        ("run --augment true", "choose from True, False"),
        ("list --group mnist --epochs 2", "do not go with a run of your own"),
        ("run --seeds 0", "--seeds must be at least 1"),
        ("run --seeds 1 --precision w2a2", "do not go with a run of your own"),
        ("table --folder no/such/folder", "holds no record of such a finished run"),
    ],
)
def test_a_command_that_cannot_be_done_ends_with_a_sentence_and_trains_nothing(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(study, "run_all", lambda *_: pytest.fail("it went on"))
    with pytest.raises(SystemExit) as ended:
        study.main(shlex.split(arguments))
    assert words in f"{ended.value.code} {capsys.readouterr().err}" and ended.value.code not in (0, None)


@pytest.mark.parametrize("workers", [-1, 0, 1.5])
def test_runs_need_at_least_one_worker(workers, tmp_path):
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1"):
        run_all([TINY], tmp_path, workers=workers)


def test_an_objective_that_does_not_exist_is_told_all_that_do():
    with pytest.raises(ValueError, match="one of plain, guided, published, published-frozen, .*; got 'paper'"):
        Run(objective="paper").build_objective()
    assert Run(objective="plain", mask_ratio=7).build_objective() is cross_entropy  # it reads no ratio


def test_a_folder_without_a_record_of_the_main_runs_makes_no_table_and_says_so(done, tmp_path):
    for folder, options, words in (
        (tmp_path, ["--group", "mnist"], "holds no record of such a finished run"),
        (done[0], [], "these runs are finished, but the table shows the plan's main runs only"),
    ):
        with pytest.raises(SystemExit, match=words):
            study.main(["table", "--folder", str(folder), *options])
