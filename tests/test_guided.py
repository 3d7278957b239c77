import copy
import functools
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import normal, on_each_device
from torch import nn

from qsal_helpers import SaliencyGuided, build_model, fit, load_data, mask_least_salient, quantize
from qsal_helpers.guided import FILLS, RANKINGS, least_salient

images = functools.partial(normal, dtype=torch.float64)


def test_in_bfloat16_a_small_divergence_is_not_lost_in_rounding():
    torch.manual_seed(0)
    model, answers, objective = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), [], SaliencyGuided()
    model[1].weight.data *= 0.05
    model.register_forward_hook(lambda model, inputs, output: answers.append(output.double().log_softmax(1)))
    with torch.autocast("cpu", torch.bfloat16):
        objective(model, normal(8, 1, 6, 6), torch.arange(8) % 5)
    wanted, answer = answers
    expected = (wanted.exp() * (wanted - answer)).sum(1).mean().float()
    torch.testing.assert_close(objective.terms["divergence"], expected, rtol=1e-3, atol=1e-7)


class Lively(nn.Module):
    """Batch-norm, dropout as a module and as a function, and ReLUs, on 1 x 6 x 6 images."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.conv, self.bn, self.relu1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3), nn.ReLU()
        self.dropout, self.rate = nn.Dropout(dropout), dropout
        self.fc = nn.Linear(16, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.relu1(self.bn(self.conv(x)))
        x = self.dropout(self.relu2(self.conv2(x)))
        return self.fc(F.dropout(x, self.rate, self.training).flatten(1))


def lively(quantized=False, dropout=0.3):
    torch.manual_seed(0)
    model = Lively(dropout)
    if quantized:
        with pytest.warns(UserWarning, match="^unused of Lively stay in float"):
            model = quantize(model, "w4a4", alpha=1.0)
    return model.double().train()


def batch(n=8, channels=1):
    return images(n, channels, 6, 6, seed=1), torch.arange(n) % 3


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_equal_gradients(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] is None) == (b[name] is None), name
        if a[name] is not None:
            torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


def kl(p_logits, q_logits):
    """KL(p || q) in nats, the mean over the batch, from its definition."""
    p, q = p_logits.softmax(1), q_logits.softmax(1)
    return (p * (p / q).log()).sum(1).mean()


# ---------------------------------------------------------------- which pixels


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    ratio=st.floats(0, 1),
    rank_by=st.sampled_from(("magnitude", "signed")),
    values=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 99),
)
@settings(max_examples=300)
def test_exactly_k_pixels_go_and_of_equal_ones_the_first_in_reading_order(shape, ratio, rank_by, values, seed):
    saliency = torch.randint(-values, values + 1, shape, generator=torch.Generator().manual_seed(seed)).double()
    chosen = least_salient(saliency, ratio, rank_by)
    batch, _, height, width = shape
    assert chosen.shape == (batch, 1, height, width) and chosen.dtype == torch.bool
    k = round(ratio * height * width)
    for one, map_ in zip(chosen, saliency, strict=True):
        score = (map_.abs() if rank_by == "magnitude" else map_).sum(0).flatten().tolist()
        expected = sorted(range(len(score)), key=lambda i: (score[i], i))[:k]  # Python's sort keeps the order of ties
        assert one.flatten().nonzero().flatten().tolist() == sorted(expected)


def test_ratio_0_replaces_nothing_and_ratio_1_everything():
    x, saliency = images(3, 2, 5, 5), images(3, 2, 5, 5, seed=1)
    assert torch.equal(mask_least_salient(x, saliency, 0.0), x)
    everything = mask_least_salient(x, saliency, 1.0, fill=[7.0, -7.0])
    assert torch.equal(everything, torch.tensor([7.0, -7.0], dtype=x.dtype).view(1, 2, 1, 1).expand_as(x))


def test_signed_ranking_takes_the_most_negative_and_magnitude_the_smallest():
    saliency = torch.tensor([[[[3.0, -5.0], [0.1, -0.2]]]])
    assert least_salient(saliency, 0.5, "signed").flatten().tolist() == [False, True, False, True]
    assert least_salient(saliency, 0.5, "magnitude").flatten().tolist() == [False, False, True, True]


def test_a_random_ranking_takes_every_pixel_equally_often_whatever_the_saliency_says():
    torch.manual_seed(0)
    saliency = torch.arange(12.0).view(1, 1, 3, 4).expand(4000, 2, 3, 4)
    chosen = least_salient(saliency, 0.25, "random")
    assert (chosen.sum((1, 2, 3)) == 3).all()
    # Four standard errors of a share of one quarter.
    assert (chosen.float().mean(0) - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 4000)
    torch.manual_seed(0)
    assert torch.equal(least_salient(-saliency.square(), 0.25, "random"), chosen)


def test_colour_channels_are_summed_after_the_magnitude_so_that_opposite_signs_do_not_cancel():
    saliency = torch.tensor([[[[5.0, 1.0]], [[-5.0, 1.0]]]])
    assert least_salient(saliency, 0.5, "magnitude").flatten().tolist() == [False, True]
    assert least_salient(saliency, 0.5, "signed").flatten().tolist() == [True, False]


def test_a_saliency_that_is_not_a_number_is_replaced_last():
    saliency = torch.tensor([[[[math.nan, 1.0, math.inf, 2.0]]]])
    assert [int(least_salient(saliency, r).sum()) for r in (0, 0.25, 0.5, 0.75, 1)] == [0, 1, 2, 3, 4]
    assert least_salient(saliency, 0.5).flatten().tolist() == [False, True, False, True]


def test_an_endless_slope_down_is_the_first_to_go_by_sign_and_among_the_last_by_magnitude():
    saliency = torch.tensor([[[[2.0, -math.inf, -3.0, 1.0]]]])
    assert least_salient(saliency, 0.25, "signed").flatten().tolist() == [False, True, False, False]
    assert least_salient(saliency, 0.75, "magnitude").flatten().tolist() == [True, False, True, True]


# ---------------------------------------------------------------- what is put there


def masked_only(x, fill, **options):
    return mask_least_salient(x, torch.zeros_like(x), 1.0, fill=fill, **options)


def test_uniform_fill_is_spread_over_each_image_and_channels_own_range():
    torch.manual_seed(0)
    x = images(4, 3, 40, 40) * torch.tensor([1.0, 5.0, 0.1]).view(1, 3, 1, 1) + 2
    y = masked_only(x, "uniform")
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    relative = (y - low) / (high - low)
    assert relative.min() >= 0 and relative.max() <= 1
    for part in relative.flatten(0, 1):
        counts = torch.histc(part, 8, 0, 1)
        assert ((counts - 200) ** 2 / 200).sum() < 30  # chi-square, 7 degrees of freedom: P < 1e-4


def test_mean_black_blur_and_given_fills_mean_what_they_say():
    x = images(3, 2, 9, 9)
    assert torch.equal(masked_only(x, "mean"), x.mean((2, 3), keepdim=True).expand_as(x))
    black = torch.stack([x[:, 0].min(), x[:, 1].min()]).view(1, 2, 1, 1)
    assert torch.equal(masked_only(x, "black"), black.expand_as(x))
    assert torch.equal(masked_only(x, (0.5, -2))[0, :, 4, 4], torch.tensor([0.5, -2], dtype=x.dtype))
    blurred = masked_only(x, "blur")
    torch.testing.assert_close(blurred[1, 1, 4, 4], x[1, 1, 1:8, 1:8].mean())
    torch.testing.assert_close(blurred[1, 1, 0, 0], x[1, 1, :4, :4].mean())


@pytest.mark.parametrize("fill", FILLS)
def test_constant_images_stay_as_they_are_and_kept_pixels_are_never_touched(fill):
    flat = torch.full((2, 1, 8, 8), 0.7)
    torch.testing.assert_close(masked_only(flat, fill), flat)
    x, saliency = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=2)
    kept = ~least_salient(saliency, 0.6).expand_as(x)
    y = mask_least_salient(x, saliency, 0.6, fill=fill)
    assert torch.equal(y[kept], x[kept]) and (y[~kept] != x[~kept]).float().mean() > 0.9


def test_masking_leaves_its_arguments_alone_and_keeps_shape_dtype_and_layout():
    for fill, dtype in itertools.product(FILLS, (torch.float32, torch.float64, torch.bfloat16)):
        x = images(2, 3, 6, 6).to(dtype).to(memory_format=torch.channels_last)
        before = x.clone()
        y = mask_least_salient(x, x, 0.5, fill=fill)
        assert torch.equal(x, before) and y.shape == x.shape and y.dtype == dtype and y.stride() == x.stride()


@pytest.mark.parametrize("ratio", [0, 0.5])
def test_images_that_a_layer_outside_the_model_makes_are_refused_for_the_mask_would_keep_it_from_learning(ratio):
    model, before, (x, y) = lively(), nn.Conv2d(1, 1, 1).double(), batch()
    with pytest.raises(ValueError, match="x comes with a gradient, which a mask cuts; put what makes x into the model"):
        SaliencyGuided(ratio)(model, before(x), y)
    SaliencyGuided(ratio)(model, before(x).detach(), y).backward()


def test_one_image_and_an_empty_batch_are_fine():
    assert mask_least_salient(images(1, 1, 1, 1), images(1, 1, 1, 1), 1.0, fill="mean").shape == (1, 1, 1, 1)
    for fill in FILLS:
        assert mask_least_salient(torch.ones(0, 3, 4, 4), torch.ones(0, 3, 4, 4), 0.5, fill=fill).shape == (0, 3, 4, 4)


# ---------------------------------------------------------------- the objective: value and gradients


def straightforward(model, objective, x, y, detach):
    """CE + weight * KL in two plain passes, given the same random numbers; returns the loss and x~."""
    leaf = x.clone().requires_grad_()
    state, put_back = torch.get_rng_state, torch.set_rng_state
    if x.is_cuda:
        state, put_back = torch.cuda.get_rng_state, torch.cuda.set_rng_state
    start = state()
    logits = model(leaf)
    cross_entropy = F.cross_entropy(logits, y)
    (saliency,) = torch.autograd.grad(-cross_entropy, leaf, retain_graph=True)
    masked = mask_least_salient(x, saliency, objective.mask_ratio, objective.rank_by, objective.fill)
    statistics = copy.deepcopy([b.clone() for b in model.buffers()])
    put_back(start)
    masked_logits = model(masked)
    for buffer, value in zip(model.buffers(), statistics, strict=True):
        buffer.data.copy_(value)
    divergence = kl(logits.detach() if detach else logits, masked_logits)
    return cross_entropy + objective.weight * divergence, cross_entropy, divergence


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("fill", ["uniform", "black"])
@pytest.mark.parametrize("rank_by", RANKINGS)
@on_each_device
def test_loss_and_all_gradients_equal_the_two_branch_formula(quantized, detach, fill, rank_by, device):
    model, (x, y) = lively(quantized).to(device), (tensor.to(device) for tensor in batch())
    objective = SaliencyGuided(0.4, weight=0.7, fill=fill, rank_by=rank_by, detach_clean=detach)
    torch.manual_seed(5)
    expected, cross_entropy, divergence = straightforward(model, objective, x, y, detach)
    expected_gradients = gradients(model, expected)
    expected_buffers = [b.clone() for b in model.buffers()]
    fresh = lively(quantized).to(device)
    torch.manual_seed(5)
    loss = objective(fresh, x, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(objective.terms["cross_entropy"], cross_entropy.detach())
    torch.testing.assert_close(objective.terms["divergence"], divergence.detach())
    assert divergence > 1e-4
    assert_equal_gradients(gradients(fresh, loss), expected_gradients, rtol=1e-9, atol=1e-12)
    for a, b in zip(fresh.buffers(), expected_buffers, strict=True):
        assert torch.equal(a, b)


def test_a_scaled_loss_scales_every_gradient():
    x, y = batch()
    results = []
    for factor in (1.0, 3.0):
        model = lively()
        torch.manual_seed(5)
        results.append(gradients(model, factor * SaliencyGuided(0.4)(model, x, y)))
    assert_equal_gradients({k: g if g is None else 3 * g for k, g in results[0].items()}, results[1])


@pytest.mark.parametrize("saliency", ["loss", "logit"])
def test_saliency_in_evaluation_mode_is_the_gradient_of_what_is_asked_for(saliency):
    model, (x, y) = lively(), batch()
    found = SaliencyGuided(0.4, saliency=saliency, eval_saliency=True).saliency_in_eval_mode(model, x, y)
    leaf = x.clone().requires_grad_()
    logits = copy.deepcopy(model).eval()(leaf)
    score = -F.cross_entropy(logits, y) if saliency == "loss" else logits.gather(1, y[:, None]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(score, leaf)[0])
    assert not x.requires_grad


@pytest.mark.parametrize("rank_by", RANKINGS)
def test_the_logit_saliency_is_the_gradient_of_the_true_class(rank_by):
    model, (x, y) = lively(dropout=0.0), batch()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, y[:, None]).sum(), leaf)
    torch.manual_seed(5)
    expected = F.cross_entropy(model(x), y) + kl(
        model(x).detach(), model(mask_least_salient(x, gradient, 0.4, rank_by, fill="mean"))
    )
    torch.manual_seed(5)
    loss = SaliencyGuided(0.4, rank_by=rank_by, fill="mean", saliency="logit")(model, x, y)
    torch.testing.assert_close(loss, expected)


def test_an_input_offset_whose_gradient_is_the_inputs_own_keeps_its_sign():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset, self.fc = nn.Parameter(torch.zeros(1, 1, 6, 6, dtype=torch.float64)), nn.Linear(36, 3).double()

        def forward(self, x):
            return self.fc((x + self.offset).flatten(1))

    torch.manual_seed(0)
    model, (x, y) = Offset(), batch(1)
    objective = SaliencyGuided(0.5, weight=0.0, fill="mean")
    plain = gradients(model, F.cross_entropy(model(x), y))
    plain = {name: g.clone() for name, g in plain.items()}
    assert_equal_gradients(gradients(model, objective(model, x, y)), plain)


@pytest.mark.parametrize("make", [SaliencyGuided, lambda: SaliencyGuided(detach_clean=False)])
def test_batch_norms_statistics_are_those_of_plain_training(make):
    guided, plain, (x, y) = lively(dropout=0.0), lively(dropout=0.0), batch()
    for _ in range(2):
        make()(guided, x, y)
        F.cross_entropy(plain(x), y)
    assert all(torch.equal(a, b) for a, b in zip(guided.buffers(), plain.buffers(), strict=True))
    assert guided.bn.num_batches_tracked == 2 and guided.bn.track_running_stats
    SaliencyGuided(freeze_statistics=False)(guided, x, y)
    assert guided.bn.num_batches_tracked == 4


def test_a_batch_norm_that_tracks_no_statistics_still_tracks_none_after_a_guided_step():
    model, (x, y) = lively(), batch()
    model.bn.track_running_stats = False
    SaliencyGuided()(model, x, y)
    assert not model.bn.track_running_stats and model.bn.num_batches_tracked == 0


@pytest.mark.parametrize("saliency", ["loss", "logit"])
def test_an_unchanged_image_costs_no_divergence_at_all_when_dropout_is_shared(saliency):
    model, y = lively(), torch.arange(8) % 3
    x = torch.ones(8, 1, 6, 6, dtype=torch.float64) * torch.arange(8).view(8, 1, 1, 1)  # constant images
    shared, own = (SaliencyGuided(0.5, saliency=saliency, share_dropout=share) for share in (True, False))
    shared(model, x, y), own(model, x, y)
    assert shared.terms["divergence"] == 0
    assert own.terms["divergence"] > 1e-3


def test_the_random_numbers_go_on_after_a_call_so_two_calls_differ():
    model, (x, y) = lively(), batch()
    torch.manual_seed(0)
    losses = [SaliencyGuided(0.5)(model, x, y).item() for _ in range(3)]
    assert len(set(losses)) == 3
    torch.manual_seed(0)
    model = lively()
    torch.manual_seed(0)
    assert SaliencyGuided(0.5)(model, x, y).item() == losses[0]


def test_without_dropout_two_calls_draw_two_fills():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    (x, y), seen, objective = batch(), [], SaliencyGuided(1.0)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    objective(model, x, y), objective(model, x, y)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[1], seen[3])


def test_frozen_layers_keep_their_mode_also_where_saliency_is_taken_in_evaluation_mode():
    model, (x, y) = lively(), batch()
    model.bn.eval()
    for objective in (SaliencyGuided(0.5), SaliencyGuided.as_published(0.5)):
        objective(model, x, y)
        assert model.training and model.dropout.training and not model.bn.training
        assert model.bn.num_batches_tracked == 0


def test_frozen_parameters_get_no_gradient_and_no_gradient_is_left_behind_before_backward():
    model, (x, y) = lively(), batch()
    model.conv.requires_grad_(False)
    loss = SaliencyGuided(0.5)(model, x, y)
    assert all(p.grad is None for p in model.parameters()) and not x.requires_grad and x.grad is None
    loss.backward()
    assert model.conv.weight.grad is None and model.fc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("objective", [SaliencyGuided(0.3), SaliencyGuided.as_published(0.3), SaliencyGuided(1.0)])
def test_grey_and_colour_images_give_a_finite_loss(channels, objective):
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    loss = objective(model, *batch(channels=channels))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- as published


def published_step(model, x, y, ratio):
    """The authors' procedure as papers describe it, one image at a time: signed ranking, nothing shared."""
    model.eval()
    maps = []
    for i in range(len(x)):
        one = x[i : i + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(one)[0, y[i]], one)
        maps.append(gradient[0])
    model.train()
    logits = model(x)
    noise = torch.rand_like(x)
    masked = x.clone()
    for i in range(len(x)):
        ranking = maps[i].sum(0).flatten().tolist()
        for pixel in sorted(range(len(ranking)), key=ranking.__getitem__)[: round(ratio * len(ranking))]:
            row, column = divmod(pixel, x.shape[3])
            for c in range(x.shape[1]):
                low, high = x[i, c].min(), x[i, c].max()
                masked[i, c, row, column] = low + noise[i, c, row, column] * (high - low)
    return F.cross_entropy(logits, y) + kl(logits, model(masked))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("quantized", [False, True])
def test_as_published_equals_the_authors_procedure_written_plainly(ratio, quantized):
    x, y = batch()
    results = []
    for step in (lambda m: published_step(m, x, y, ratio), lambda m: SaliencyGuided.as_published(ratio)(m, x, y)):
        model = lively(quantized)
        torch.manual_seed(11)
        loss = step(model)
        results.append((loss.detach(), gradients(model, loss), [b.clone() for b in model.buffers()]))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert_equal_gradients(results[0][1], results[1][1], rtol=1e-8, atol=1e-11)
    for a, b in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------- ratio 0, ramp, terms, own loops


def test_ratio_0_is_plain_training_to_the_bit_for_a_whole_fit():
    data, results = load_data("mnist", size=200), []
    for options in ({}, {"objective": SaliencyGuided(0.0)}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 5, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
        model = quantize(model.append(nn.Linear(256, 10)), "w4a4")
        history = fit(model, data, epochs=2, batch_size=50, progress=False, **options)
        results.append((history.loss, history.validation_accuracy, history.alphas, model.state_dict()))
    assert results[0][:3] == results[1][:3]
    assert all(torch.equal(v, results[1][3][k]) for k, v in results[0][3].items())


def test_the_mask_ratio_grows_from_0_to_its_full_value_over_the_ramp(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "qsal_helpers.guided.mask_least_salient", lambda x, s, ratio, *_: (seen.append(ratio), x.clone())[1]
    )
    objective, model = SaliencyGuided(0.8, ramp_steps=4), lively()
    objective(model, *batch())
    assert objective.terms["divergence"] == 0 and seen == []  # the first call is plain training
    for _ in range(5):
        objective(model, *batch())
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_terms_are_detached_unweighted_numbers_that_add_up_to_the_loss():
    objective, model = SaliencyGuided(0.5, weight=2.5), lively()
    loss = objective(model, *batch())
    terms = objective.terms
    assert sorted(terms) == ["cross_entropy", "divergence"] and not any(t.requires_grad for t in terms.values())
    torch.testing.assert_close(loss.detach(), terms["cross_entropy"] + 2.5 * terms["divergence"])


def test_in_the_users_own_loop_the_labels_are_learned_with_less_divergence_than_by_plain_training():
    means = {}
    for weight in (0.0, 1.0):
        model, objective = lively(dropout=0.0), SaliencyGuided(0.5, weight, fill="mean")
        optimizer, history = torch.optim.Adam(model.parameters(), lr=0.01), []
        for _ in range(60):
            optimizer.zero_grad()
            objective(model, *batch()).backward()
            optimizer.step()
            history.append(torch.stack([*objective.terms.values()]))
        means[weight] = torch.stack(history[30:]).mean(0)
    assert means[1.0][0] < 0.1 * history[0][0] and means[1.0][1] < 0.5 * means[0.0][1]


def test_gradients_accumulate_over_two_backward_passes():
    model, (x, y) = lively(dropout=0.0), batch()
    objective = SaliencyGuided(0.5, fill="mean")
    one = {k: g if g is None else g.clone() for k, g in gradients(model, objective(model, x, y)).items()}
    objective(model, x, y).backward()
    twice = {k: g if g is None else 2 * g for k, g in one.items()}
    assert_equal_gradients({k: p.grad for k, p in model.named_parameters()}, twice)


def test_a_plain_loss_can_be_had_without_gradients_but_a_ranking_cannot():
    model, (x, y) = lively(), batch()
    with torch.no_grad():
        assert SaliencyGuided(0.0)(model, x, y).isfinite()
        with pytest.raises(ValueError, match="no_grad"):
            SaliencyGuided(0.5)(model, x, y)


# ---------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask_ratio": -0.1},
        {"mask_ratio": 1.1},
        {"mask_ratio": math.nan},
        {"mask_ratio": True},
        {"mask_ratio": "0.5"},
        {"mask_ratio": None},
        {"weight": -1},
        {"weight": math.inf},
        {"weight": math.nan},
        {"weight": "1"},
        {"rank_by": "size"},
        {"fill": "white"},
        {"saliency": "map"},
        {"ramp_steps": -1},
        {"ramp_steps": 2.5},
        {"ramp_steps": math.nan},
    ],
)
def test_an_objective_that_makes_no_sense_cannot_be_made(wrong):
    with pytest.raises((ValueError, TypeError)) as caught:
        SaliencyGuided(**wrong)
    assert len(str(caught.value)) > 20


def test_images_and_labels_that_do_not_belong_together_are_refused():
    model, (x, y) = lively(), batch()
    for wrong_x, wrong_y in ((x, y[:5]), (x[:0], y[:0]), (x[0], y), (x, F.one_hot(y))):
        with pytest.raises(ValueError, match="got"):
            SaliencyGuided(0.5)(model, wrong_x, wrong_y)
    with pytest.raises(TypeError, match="floating-point"):
        SaliencyGuided(0.5)(model, (255 * x).to(torch.uint8), y)
    with pytest.raises(ValueError, match="one shape"):
        mask_least_salient(x, x[:, :, :3], 0.5)
    with pytest.raises(ValueError, match="one finite number for each of the 1 channels"):
        mask_least_salient(x, x, 0.5, fill=[1, 2, 3])


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [0.5], [0.5, 1, 2], (math.nan,), torch.tensor(0.5), torch.ones(3)]),
)
tensors = st.sampled_from(
    [
        images(2, 3, 4, 4, dtype=torch.float32),
        images(2, 1, 4, 4, dtype=torch.float32),
        images(0, 3, 4, 4, dtype=torch.float32),
        images(1, 3, 1, 1, dtype=torch.float32),
        images(2, 3, 0, 4, dtype=torch.float32),
        torch.full((2, 3, 4, 4), math.nan),
        torch.full((2, 3, 4, 4), math.inf),
        torch.ones(2, 3, 4, 4, dtype=torch.uint8),
        images(2, 3, 4, 4),
        images(4, 4, 3, 2, dtype=torch.float32).permute(3, 2, 0, 1),
        images(4, 4, dtype=torch.float32),
    ]
)


@given(
    x=st.one_of(tensors, anything),
    saliency=st.one_of(tensors, anything),
    ratio=st.one_of(st.floats(0, 1), anything),
    rank_by=st.one_of(st.sampled_from(RANKINGS), anything),
    fill=st.one_of(st.sampled_from(FILLS), anything),
)
@settings(max_examples=500)
def test_whatever_mask_least_salient_is_given_it_masks_or_says_what_is_wrong(x, saliency, ratio, rank_by, fill):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = mask_least_salient(x, saliency, ratio, rank_by, fill)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 15
    else:
        assert y.shape == x.shape and y.dtype == x.dtype
        k = round(float(ratio) * x.shape[2] * x.shape[3])
        assert (y != x).any(1).flatten(1).sum(1).max(0).values <= k if x.numel() and x.isfinite().all() else True


@given(options=st.fixed_dictionaries({}, optional={n: anything for n in ("mask_ratio", "weight", "fill", "rank_by")}))
@settings(max_examples=300)
def test_whatever_saliency_guided_is_given_it_trains_or_says_what_is_wrong(options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    try:
        loss = SaliencyGuided(**options)(model, *batch())
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 15
    else:
        assert loss.isfinite()


class Deaf(nn.Module):
    """A model that does not look at its images; with or without a parameter."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, x):
        return self.bias.expand(len(x), 3)


@pytest.mark.parametrize("bias", [nn.Parameter(torch.zeros(3)), torch.zeros(3)], ids=["parameter", "constant"])
@pytest.mark.parametrize(
    "objective",
    [SaliencyGuided(), SaliencyGuided(saliency="logit"), SaliencyGuided.as_published()],
    ids=["loss", "logit", "published"],
)
def test_a_model_whose_output_does_not_depend_on_the_images_is_told_so(objective, bias):
    with pytest.raises(ValueError, match="the model's output does not depend on x"):
        objective(Deaf(bias), torch.rand(2, 1, 6, 6), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["detach_clean", "freeze_statistics", "share_dropout", "eval_saliency"])
@pytest.mark.parametrize("value", ["no", None, 1])
def test_a_switch_that_is_neither_true_nor_false_is_refused(name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False"):
        SaliencyGuided(**{name: value})


def test_a_penalty_on_the_gradients_is_refused_by_the_default_and_right_where_the_loss_keeps_its_graph():
    model, (x, y) = lively(dropout=0.0), batch()
    weight = model.fc.weight
    with pytest.raises(RuntimeError, match="no second derivative; choose detach_clean=False"):
        torch.autograd.grad(SaliencyGuided()(model, x, y), weight, create_graph=True)
    loss = SaliencyGuided(weight=0.0, detach_clean=False)(model, x, y)
    (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    (plain,) = torch.autograd.grad(F.cross_entropy(model(x), y), weight, create_graph=True)
    curvatures = [torch.autograd.grad(g.square().sum(), weight)[0] for g in (slope, plain)]
    torch.testing.assert_close(*curvatures)
    assert curvatures[0].abs().max() > 1e-6


@pytest.mark.parametrize("objective", [SaliencyGuided(), SaliencyGuided(mask_ratio=0.0), SaliencyGuided.as_published()])
def test_a_model_that_works_in_place_on_its_images_leaves_the_batch_alone(objective):
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(1))

    model, (x, y) = InPlace(nn.Flatten(), nn.Linear(36, 3)).double(), batch()
    before = x.clone()
    assert objective(model, x, y).isfinite() and torch.equal(x, before)


@pytest.mark.parametrize("objective", [SaliencyGuided(), SaliencyGuided.as_published()])
def test_a_model_that_returns_no_logits_is_refused_with_what_it_returned(objective):
    model, (x, y) = nn.Conv2d(1, 3, 6).double(), batch()
    with pytest.raises(ValueError, match=r"logits of shape \(B, classes\); it returned shape \(8, 3, 1, 1\)"):
        objective(model, x, y)


def test_a_hook_on_a_parameter_is_called_once_as_in_plain_training():
    def gradients(hooked):
        torch.manual_seed(0)
        model = build_model("lenet5", image_size=16)
        for parameter in model.parameters() if hooked else ():
            parameter.register_hook(lambda gradient: gradient / 2)
        x, y = torch.rand(8, 1, 16, 16), torch.arange(8) % 3
        torch.manual_seed(1)
        SaliencyGuided(0.5)(model, x, y).backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.testing.assert_close(gradients(hooked=True), [gradient / 2 for gradient in gradients(hooked=False)])
