import itertools
import json
import os
import struct
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from qsal_helpers import PACT, Precision, build_model, describe, evaluate, fit, load_data, quantize
from qsal_helpers.checkpoints import CheckpointError, load_model, read_notes, save_model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a good checkpoint."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    save_model(small(), path, accuracy=0.9)
    return path.read_bytes()


def small(precision="w4a2", scheme="sawb"):
    torch.manual_seed(0)
    return quantize(build_model("lenet5", image_size=16), precision, scheme)


def edited(content, change):
    """The same file with its header's JSON changed by a function; lengths made right again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    inner = json.loads(header["__metadata__"]["qsal"])
    header, inner = change(header, inner) or (header, inner)
    header["__metadata__"]["qsal"] = inner if isinstance(inner, str) else json.dumps(inner)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def assert_equal_models(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y), name
    assert [type(m) for m in a.modules()] == [type(m) for m in b.modules()]
    assert describe(a) == describe(b)
    assert [m.bits for m in a.modules() if isinstance(m, PACT)] == [m.bits for m in b.modules() if isinstance(m, PACT)]
    x = torch.rand(3, *a.input_shape, dtype=next(a.parameters()).dtype)
    assert torch.equal(a.eval()(x), b(x))


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", ["lenet5", "cnn", "vgg_small", "resnet20", "guided_paper_cnn", "resnet18"])
@pytest.mark.parametrize("precision", [None, "w2a4"])
@pytest.mark.filterwarnings("ignore:layer4.1.conv2 .* read more bits")
def test_every_network_comes_back_to_the_bit_with_equal_outputs(name, precision, path):
    model = build_model(name, 2, 5, 16)
    for buffer in model.buffers():
        buffer.copy_(torch.randint(1, 5, buffer.shape))
    model = quantize(model, precision) if precision else model
    save_model(model, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_model(path)
    assert_equal_models(model, again)
    assert again.recipe == model.recipe and again.input_shape == model.input_shape and not again.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())


@pytest.mark.parametrize("scheme", ["sawb", "dorefa", "minmax"])
@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        "mixed-4/2",
        Precision(4, 2, first=3, last=5),
        Precision((8, 2), 4, layers={"fc1": (3, 6), "conv2": (2, 2)}),
    ],
)
def test_precision_and_scheme_come_back_exactly(precision, scheme, path):
    model = small(precision, scheme)
    save_model(model, path)
    again = load_model(path)
    assert_equal_models(model, again)
    assert again.precision == model.precision and again.scheme == scheme


def test_a_trained_network_comes_back_with_its_alphas_and_can_be_trained_on(path):
    data = load_data("mnist", size=200)
    torch.manual_seed(0)
    model = quantize(build_model("cnn"), "w4a4")
    fit(model, data, epochs=1, progress=False)
    save_model(model, path)
    again = load_model(path)
    assert_equal_models(model, again)
    assert again.conv2.weight.stride() == model.conv2.weight.stride()  # channels_last, which fit left it in
    results = [fit(m, data, epochs=1, progress=False).loss for m in (model, again)]
    assert results[0] == results[1]


def test_a_float64_network_stays_one(path):
    model = small().double()
    save_model(model, path)
    assert_equal_models(model, load_model(path))


def test_notes_are_read_without_the_model(path):
    notes = {"epochs": 3, "accuracy": 0.5, "who": "Zoë", "list": [1, None, True], "model": "x", "path": {"a": [2]}}
    save_model(small(), path, **notes)
    assert read_notes(path) == notes
    save_model(small(), path)
    assert read_notes(path) == {}


def test_the_file_is_as_small_as_its_numbers_and_plain_safetensors(saved, path):
    path.write_bytes(saved)
    tensors = safetensors.torch.load_file(path)
    assert tensors.keys() == small().state_dict().keys()
    assert len(saved) < sum(t.numel() * t.element_size() for t in tensors.values()) + 5000


def test_saving_and_loading_leave_model_and_random_numbers_alone(path):
    model = small().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    save_model(model, path)
    load_model(path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_loaded_model_does_not_depend_on_its_file_any_more(saved, path):
    path.write_bytes(saved)
    model = load_model(path)
    path.write_bytes(b"\0" * len(saved))
    assert all(v.isfinite().all() for v in model.state_dict().values())
    assert_equal_models(small(), model)


# ---------------------------------------------------------------- whole or not at all


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    save_model(small(), path, version="old")
    before = path.read_bytes()
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space left"):
                save_model(small("w2a2"), path, version="new")
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_an_older_file_is_replaced_and_the_new_one_is_readable_as_any_other(path):
    save_model(small(), path, n=1)
    save_model(small("w2a2"), path, n=2)
    assert read_notes(path) == {"n": 2} and load_model(path).precision == Precision(2, 2)
    other = path.with_name("other")
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode and len(list(path.parent.iterdir())) == 2


# ---------------------------------------------------------------- what cannot be saved


def test_a_model_that_could_not_be_built_again_is_refused():
    def changed_layer():
        model = build_model("lenet5")
        model.fc3 = nn.Linear(84, 7)
        return model

    def changed_bits():
        model = small()
        model.fc1.weight_bits = 3
        return model

    def replaced_activation():
        model = build_model("lenet5")
        model.relu1 = nn.Tanh()
        return model

    def changed_option(name, **options):
        model = build_model("cnn")
        for option, value in options.items():
            setattr(model.get_submodule(name), option, value)
        return model

    def text_precision():
        model = small()
        model.precision = "w4a2"
        return model

    for model, reason in (
        (nn.Linear(2, 2), "Linear was not made by build_model"),
        (quantize(nn.Sequential(nn.Linear(2, 2)), "w4a4"), "Sequential was not made by build_model"),
        (changed_layer(), "changed after build_model"),
        (changed_bits(), "changed after build_model"),
        (replaced_activation(), "changed after build_model"),
        (changed_option("conv1", stride=(2, 2)), "changed after build_model"),
        (changed_option("pool1", padding=1), "changed after build_model"),
        (text_precision(), "must be a Precision"),
        ("model", "str was not made by build_model"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            save_model(model, "never-written")
    assert not os.path.exists("never-written")


@pytest.mark.parametrize("note", [{1, 2}, float("nan"), float("inf"), torch.ones(2), object(), b"bytes"])
def test_a_note_that_is_no_plain_json_is_refused_and_nothing_is_written(note, path):
    with pytest.raises(CheckpointError, match="notes must be plain JSON"):
        save_model(small(), path, note=note)
    assert list(path.parent.iterdir()) == []


# ---------------------------------------------------------------- what cannot be loaded


def assert_refused(path, content, reason=None):
    path.write_bytes(content)
    for read in (load_model, read_notes) if reason is None else (load_model,):
        with pytest.raises(CheckpointError, match=reason) as caught:
            read(path)
        assert len(str(caught.value)) > 20


def test_a_header_of_one_gigabyte_is_refused_without_reading_it(path, saved):
    for length in (10**9, 2**63, 2**64 - 1):
        assert_refused(path, struct.pack("<Q", length) + saved[8:])


def test_a_missing_file_a_folder_and_no_checkpoint_are_told_apart(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(path)
    with pytest.raises(CheckpointError, match="damaged, or no safetensors"):
        load_model(tmp_path)
    assert_refused(path, safetensors.torch.save({"x": torch.ones(2)}), "no checkpoint")
    assert_refused(path, safetensors.torch.save({"x": torch.ones(2)}, metadata={"format": "pt"}))
    assert_refused(path, b"")
    assert_refused(path, b"just some text, nothing more")


@pytest.mark.parametrize("value", [0, 2, "1", None, [1]])
def test_another_version_is_named(path, saved, value):
    content = edited(saved, lambda header, inner: inner.update(format=value))
    assert_refused(path, content, rf"has format {value!r}, and this version".replace("[", r"\[").replace("]", r"\]"))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", "[" * 100_000, '{"format": 1}'])
def test_a_header_that_is_no_json_object_of_ours_is_refused(path, saved, text):
    assert_refused(path, edited(saved, lambda header, inner: (header, text)))


def deep_edits():
    def put(*keys, value):
        def change(header, inner):
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = value

        return change

    return {
        "no such network": put("recipe", "name", value="os.system"),
        "a network of another shape": put("recipe", "num_classes", value=11),
        "absurdly many classes": put("recipe", "num_classes", value=10**12),
        "more classes than numbers hold": put("recipe", "num_classes", value=10**30),
        "absurdly large images": put("recipe", "image_size", value=10**9),
        "a negative size": put("recipe", "image_size", value=-3),
        "a recipe argument too many": put("recipe", "weights", value="DEFAULT"),
        "a recipe that is a list": put("recipe", value=["lenet5"]),
        "a recipe that is a text": put("recipe", value="lenet5"),
        "impossible bits": put("precision", "weights", value=1),
        "bits as text": put("precision", "first", value="8"),
        "three halves": put("precision", "weights", value=[4, 2, 2]),
        "an unknown layer": put("precision", "layers", value={"conv9": [4, 4]}),
        "layers as a list": put("precision", "layers", value=[1]),
        "a precision that is a text": put("precision", value="w4a4"),
        "no precision": put("precision", value=None),
        "an unknown scheme": put("scheme", value="lsq"),
        "a scheme that is a list": put("scheme", value=[]),
    }


@pytest.mark.parametrize("kind", deep_edits())
def test_an_edited_header_is_refused(path, saved, kind):
    assert_refused(path, edited(saved, deep_edits()[kind]), "model.safetensors")


def test_missing_renamed_misshaped_and_foreign_tensors_are_named(path):
    save_model(small(), path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = {k: v.clone() for k, v in small().state_dict().items()}

    def refused(name, **changes):
        tensors = {k: v for k, v in (state | changes).items() if v is not None}
        assert_refused(path, safetensors.torch.save(tensors, metadata), f"tensor '{name}' is wrong or missing")

    refused("fc1.bias", **{"fc1.bias": None})
    refused("aaa", aaa=torch.ones(1))
    refused("fc1.bias", **{"fc1.bias": torch.ones(1)})
    refused("relu1.alpha", **{"relu1.alpha": torch.ones(1)})
    refused("fc1.weight", **{"fc1.weight": state["fc1.weight"].t().contiguous()})
    refused("fc1.bias", **{"fc1.bias": state["fc1.bias"].to(torch.int32)})


@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_of_the_header_loads_a_model_or_is_refused(path, saved, position, byte):
    (length,) = struct.unpack("<Q", saved[:8])
    content = bytearray(saved)
    content[int(position * (8 + length))] = byte
    path.write_bytes(content)
    try:
        model = load_model(path)
    except CheckpointError as error:
        assert len(str(error)) > 20
    else:
        assert model(torch.zeros(1, *model.input_shape)).shape[0] == 1


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_at_any_byte_is_refused(path, saved, cut):
    assert_refused(path, saved[: int(cut * len(saved))])


# ---------------------------------------------------------------- in half the bytes


@pytest.mark.parametrize("precision", ["fp32", "w2a2"])
def test_half_takes_about_half_the_bytes_and_rounds_nothing_but_weights(precision, tmp_path):
    model = small(precision).to(memory_format=torch.channels_last)
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_model(model, full)
    save_model(model, half, half=True)
    again = load_model(half)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    for (name, before), after in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        expected = before.half().float() if before.dim() >= 2 else before
        assert after.dtype == before.dtype and torch.equal(after, expected), name


def test_what_half_gave_back_comes_back_to_the_bit_and_can_be_trained_on(path):
    save_model(small(), path, half=True)
    once = load_model(path)
    save_model(once, path, half=True)
    assert_equal_models(once, load_model(path))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in load_model(path).parameters())


def test_half_refuses_weights_that_16_bits_cannot_hold_and_keeps_the_old_file(path):
    model = small()
    save_model(model, path, half=True)
    before = path.read_bytes()
    model.conv2.weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(CheckpointError, match="'conv2.weight' holds numbers beyond 65504"):
        save_model(model, path, half=True)
    assert path.read_bytes() == before


def test_half_leaves_a_model_of_another_type_alone(path):
    model = build_model("lenet5", image_size=16).double()
    save_model(model, path, half=True)
    assert_equal_models(model, load_model(path))


def test_half_gives_a_model_in_16_bits_back_in_16_bits(path):
    model = build_model("lenet5", image_size=16).half()
    save_model(model, path, half=True)
    assert_equal_models(model, load_model(path))


# ---------------------------------------------------------------- the networks that come with the course

SHIPPED = Path(__file__).parent.parent / "notebooks" / "results" / "checkpoints"


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.safetensors")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_shipped_network_is_what_its_name_and_its_notes_say(path):
    model, notes = load_model(path), read_notes(path)
    precision = getattr(model, "precision", None)
    assert notes["precision"] == ("fp32" if precision is None else str(precision))
    assert path.stem == f"{notes['precision'].replace('/', '-')}-{notes['mask_ratio']:g}"
    assert path.parent.name == notes["data"]
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    if notes["data"] == "fashion-mnist":
        # On another processor a few of the 2,000 images may change sides.
        assert evaluate(model, load_data("fashion-mnist")) == pytest.approx(notes["accuracy"], abs=0.005)


def test_the_sliders_of_lesson_05_have_a_network_at_every_setting_in_a_few_megabytes():
    files = list((SHIPPED / "fashion-mnist").glob("*.safetensors"))
    settings = {(notes["precision"], notes["mask_ratio"]) for notes in map(read_notes, files)}
    assert settings == set(itertools.product(("fp32", "w4a4", "mixed-4/2", "w2a2"), (0, 0.25, 0.5, 0.75)))
    assert sum(file.stat().st_size for file in files) < 11.5e6


def test_a_model_whose_layer_reads_other_bits_than_quantize_gave_it_is_refused(tmp_path):
    model = small()
    model.fc1.activation_bits = 8
    with pytest.raises(CheckpointError, match="changed after build_model"):
        save_model(model, tmp_path / "never-written")
