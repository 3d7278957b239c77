import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qsal_helpers import Distilled, SaliencyGuided, fit, load_data
from qsal_helpers.training import cross_entropy


def network(seed, classes=3):
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)
    return nn.Sequential(*layers).double()


def batch():
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(6) % 3


def without_dropout(model):
    model[4].p = 0.0
    return model


def test_what_a_teachers_own_module_keeps_tells_it_from_another_teacher():
    class Counting(nn.Flatten):
        def __init__(self, count):
            super().__init__()
            self.count = count

        def get_extra_state(self):
            return {"count": self.count}

    described = [repr(Distilled(nn.Sequential(Counting(count)))) for count in (1, 1, 2)]
    assert described[0] == described[1] != described[2]


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_the_loss_is_the_objective_plus_the_divergence_of_the_softened_answers_in_closed_form(temperature):
    model, teacher, (x, y) = without_dropout(network(0)), network(1), batch()
    p = (teacher.eval()(x) / temperature).softmax(1)
    q = (model.train()(x) / temperature).softmax(1)
    expected = cross_entropy(model, x, y) + 0.7 * temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(Distilled(teacher, weight=0.7, temperature=temperature)(model, x, y), expected)


@pytest.mark.parametrize("change", [1e-3, 1e-2])
def test_in_bfloat16_the_divergence_of_answers_that_are_nearly_the_same_is_not_lost_in_rounding(change):
    model, (x, y), nothing = without_dropout(network(0)).float(), batch(), lambda model, x, y: (model(x) * 0).sum()
    teacher = copy.deepcopy(model)
    teacher[1].weight.data *= 1 + change
    with torch.autocast("cpu", torch.bfloat16):
        found = Distilled(teacher, nothing, temperature=1.0)(model, x.float(), y)
        answer, wanted = (m(x.float()).double().log_softmax(1) for m in (model, teacher.eval()))
    expected = (wanted.exp() * (wanted - answer)).sum(1).mean().float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


class Answers(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits


def test_at_a_high_temperature_the_gradient_is_that_of_matched_logits():
    # Section 2.1 of the paper: T^2 times the gradient tends to (z - v) / classes, for logits of mean 0.
    model, teacher, (x, y) = without_dropout(network(0)), network(1), batch()
    z = model(x).detach().requires_grad_()
    v = teacher.eval()(x).detach()
    Distilled(teacher, lambda model, x, y: torch.zeros(()), temperature=1e4)(Answers(z), x, y).backward()
    centred = [each - each.mean(1, keepdim=True) for each in (z.detach(), v)]
    torch.testing.assert_close(z.grad, (centred[0] - centred[1]) / 3 / len(x), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_answers_in_evaluation_mode_and_is_left_as_it_was(training):
    model, teacher, (x, y) = network(0), network(1).train(training), batch()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    without_dropout(model)
    losses = {Distilled(teacher)(model, x, y).item() for _ in range(3)}
    Distilled(teacher)(model, x, y).backward()
    assert len(losses) == 1 and teacher.training == training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_without_options_the_temperature_is_4_and_both_terms_count_alike():
    model, teacher, (x, y) = without_dropout(network(0)), network(1), batch()
    given = Distilled(teacher, cross_entropy, weight=1.0, temperature=4.0)(model, x, y)
    torch.testing.assert_close(Distilled(teacher)(model, x, y), given, rtol=0, atol=0)


def test_batch_norm_s_statistics_see_each_batch_twice_and_the_second_pass_has_dropout_masks_of_its_own():
    model, (x, y), masks = network(0), batch(), []
    model[4].register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    Distilled(network(1))(model, x, y)
    assert model[2].num_batches_tracked == 2 and not torch.equal(*masks)


def test_at_weight_0_nothing_but_the_objective_is_left():
    (x, y), seen = batch(), []
    for wrap in (lambda objective: objective, lambda objective: Distilled(network(1), objective, weight=0)):
        model, objective = network(0), wrap(cross_entropy)
        torch.manual_seed(0)
        loss = objective(model, x, y)
        seen.append([loss, torch.get_rng_state(), *model.state_dict().values()])
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


def test_a_student_learns_its_teachers_answers_with_any_objective():
    data = load_data("mnist", size=500)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) for _ in range(2))
    fit(teacher, data, epochs=2, seed=0, progress=False)
    for objective in (cross_entropy, SaliencyGuided(0.5)):
        distances = []
        for weight in (0.0, 1.0):
            student.load_state_dict({name: torch.zeros_like(value) for name, value in teacher.state_dict().items()})
            fit(student, data, Distilled(teacher, objective, weight), epochs=2, seed=1, lr=0.01, progress=False)
            with torch.no_grad():
                x = data.normalise(data.test.images)
                distances.append(F.mse_loss(student(x).softmax(1), teacher(x).softmax(1)))
        assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(
    "wrong", [{"weight": -1}, {"temperature": 0}, {"temperature": float("nan")}, {"weight": True}], ids=str
)
def test_a_weight_or_a_temperature_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Distilled(network(0), **wrong)


def test_a_teacher_that_is_no_network_or_knows_other_classes_is_refused():
    with pytest.raises(TypeError, match="teacher must be an nn.Module"):
        Distilled("resnet18")
    with pytest.raises(TypeError, match="a function of model, x and y; got float"):
        Distilled(network(0), 0.5)
    with pytest.raises(ValueError, match="the same classes; they have 3, 5"):
        Distilled(network(0, classes=5))(network(1), *batch())


class InPlace(nn.Sequential):
    def forward(self, x):
        return super().forward(x.sub_(1))


def without_working_in_place(network):
    """Return a network of the same answers."""
    plain = nn.Sequential(nn.Flatten(), copy.deepcopy(network[1]))
    plain[1].bias.data -= network[1].weight.sum(1)
    return plain


def test_a_student_and_a_teacher_that_work_in_place_leave_the_batch_and_each_other_alone():
    torch.manual_seed(0)
    student, teacher = (InPlace(nn.Flatten(), nn.Linear(16, 3)).double() for _ in range(2))
    x, y = batch()
    before = x.clone()
    expected = Distilled(without_working_in_place(teacher))(without_working_in_place(student), x, y)
    torch.testing.assert_close(Distilled(teacher)(student, x, y), expected)
    assert torch.equal(x, before)


def test_the_teacher_is_moved_to_where_the_images_are():
    model, x, y = network(0).to("meta"), *(tensor.to("meta") for tensor in batch())
    assert Distilled(network(1))(model, x, y).device == x.device
