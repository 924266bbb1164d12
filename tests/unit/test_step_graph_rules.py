"""`training.cuda_graphs`: its values, including former ones, and what is incompatible with it."""

import pytest
import torch
from graph_recording import RecordedGraphs
from torch import nn

from impasto.config.cases import Facts
from impasto.config.compatibility import conflicts
from impasto.data.records import Size
from impasto.datasets.build import survey
from impasto.diffusion.conditioning import Conditioning
from impasto.errors import ConfigError
from impasto.models.networks.loading import load_meta_model
from impasto.progress import SilentProgress
from impasto.training.fingerprints.fingerprint import differences
from impasto.training.optim.graph_recorder import MOST_GRAPHS, NotRecordableError, as_told
from impasto.training.optim.graphed_update import GraphedUpdate, require_capturable
from impasto.training.optim.mixed_precision import Precision
from impasto.training.optim.step_queue import StepQueue
from impasto.training.optim.updates import UpdateInputs
from impasto.training.optim.weight_copies import WeightCopies
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.planning.overhead import GRAPH, workspace_bytes
from impasto.training.planning.workload import Workload
from impasto.training.step import StepInputs
from impasto.training.steps.step_graphs import StepGraphs, save_no_random_states

ON_GPU = Facts("cuda", 1, "", "bf16")


@pytest.mark.parametrize(
    ("given", "read"), [(True, "network"), (False, "off"), ("true", "network"), ("step", "step")]
)
def test_true_and_false_are_read_as_ever(given, read, train_config):
    config = train_config(training={"cuda_graphs": given, "compile": "full"})
    assert config.training.cuda_graphs == read


REFUSED = {
    "8 bits": ({"optimizer": {"kind": "adamw8bit"}}, "found adamw8bit"),
    "schedule-free": ({"optimizer": {"kind": "adamw_schedule_free"}}, "set cuda_graphs to off"),
    "not fused": ({"optimizer": {"arguments": {"fused": False}}}, "with fused = false"),
    "16-bit weights": (
        {"training": {"weight_dtype": "bf16", "mixed_precision": "bf16"}},
        "weight_dtype bf16",
    ),
    "steps in the backward pass": (
        {"training": {"optimizer_in_backward": "exact"}},
        "optimizer_in_backward",
    ),
    "states in RAM": ({"training": {"offload_optimizer": True}}, "offload_optimizer"),
    "streamed weights": (
        {
            "training": {
                "stream_weights": True, "optimizer_in_backward": "exact",
                "gradient_checkpointing": True,
            }
        },
        "optimizer_in_backward",
    ),
    "fp16": ({"training": {"mixed_precision": "fp16"}}, "mixed_precision to bf16"),
    "dropout that is drawn again": (
        {
            "method": {
                "kind": "hypernetwork", "layers": [1, 2, 2, 1], "dropout": [0, 0.1, 0, 0],
            },
            "saving": {"format": "a1111", "export_dtype": "fp32"},
            "training": {"gradient_checkpointing": True},
        },
        "gradient_checkpointing and method.dropout",
    ),
    "text encoder": ({"method": {"train_text_encoder": True}}, "train_text_encoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_host_does_within_a_step_is_refused(name, train_config):
    changes, words = REFUSED[name]
    training = {**changes.get("training", {}), "cuda_graphs": "step"}
    with pytest.raises(ConfigError, match=words):
        train_config(**{**changes, "training": training})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Facts("cpu", 1, ""), "is for GPUs"),
        (Facts("cuda", 2, ""), "is for one process, and this run has 2"),
        (Facts("cuda", 2, "FSDP"), "is for one process"),
        (Facts("cuda", 1, "", "fp16"), "fp16"),
    ],
)
def test_what_is_known_beside_the_settings_is_refused(facts, words, train_config):
    config = train_config(training={"cuda_graphs": "step", "mixed_precision": "auto"})
    assert not list(conflicts(config, ON_GPU))
    assert words in next(conflicts(config, facts))


@pytest.mark.parametrize("compiled", ["off", "blocks", "full"])
def test_whole_steps_go_with_what_networks_alone_do_not(compiled, train_config):
    train_config(
        training={
            "cuda_graphs": "step", "compile": compiled, "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True, "mixed_precision": "bf16", "weight_copies": True,
        }
    )  # fmt: skip


@pytest.mark.parametrize("was", ["true", "false"])
def test_states_from_before_are_resumed(was):
    assert differences({"training.cuda_graphs": was, "seed": "1"}, {"seed": "1"}) == []


def test_an_optimizer_that_was_given_in_code_has_to_step_on_the_device():
    weights = [nn.Parameter(torch.ones(2))]
    require_capturable(torch.optim.AdamW(weights, fused=True))
    for other in (torch.optim.AdamW(weights), torch.optim.SGD(weights, fused=True)):
        with pytest.raises(ConfigError, match=type(other).__name__):
            require_capturable(other)


@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_dropout_does_not_go_with_blocks_that_are_computed_again(dropout):
    network = nn.Sequential(nn.Linear(2, 2), dropout(0.1))
    save_no_random_states(network)
    network[0].gradient_checkpointing = True
    with pytest.raises(ConfigError, match="dropout"):
        save_no_random_states(network)
    network[1].p = 0.0
    save_no_random_states(network)


def test_errors_of_a_recording_are_told_as_what_they_are():
    found = as_told(RuntimeError("operation not permitted when stream is capturing\nCompile with"))
    assert isinstance(found, NotRecordableError)
    assert str(found) == "operation not permitted when stream is capturing"
    for error in (torch.OutOfMemoryError("CUDA out of memory."), ConfigError("a"), KeyError("b")):
        assert as_told(error) is error


def test_the_recorder_of_the_tests_keeps_numbers_of_the_host():
    """A recorded number stays the same, and a tensor is read again."""
    place, factor = torch.ones(3), [2.0]

    def work():
        place.mul_(factor[0]).add_(place.sum())

    replay = RecordedGraphs().record(work)
    assert place.tolist() == [1.0] * 3
    factor[0] = 100.0
    replay()
    assert place.tolist() == [8.0] * 3
    with pytest.raises(NotRecordableError):
        RecordedGraphs().record(lambda: place.sum().item())


@pytest.fixture
def graphs():
    """Graphs of a network with one weight, whose loss is (weight * x_0 - noise)^2."""
    network = nn.Module()
    network.weight = nn.Parameter(torch.ones(1))
    network.register_buffer("frozen", torch.ones(1))

    def losses(tensors):
        output = network.weight * network.frozen * tensors.x_0
        return (output - tensors.noise).square().mean(dim=(1, 2, 3)) * tensors.weights

    graphs, recorder = graphs_of(network, losses)
    return graphs, network, recorder


def graphs_of(network, losses):
    """Return the graphs of a network, and their recorder."""
    weights = list(network.parameters())
    inputs = UpdateInputs(
        torch.optim.AdamW(weights, lr=2.0**-3, fused=True),
        weights,
        Precision("no", torch.device("cpu")),
    )
    copies, recorder = WeightCopies([], torch.float32), RecordedGraphs()
    update = GraphedUpdate(inputs, recorder, copies)
    return StepGraphs(losses, update, copies, recorder, network, print), recorder


def batch(size, value=1.0, side=2):
    latents = torch.full((size, 4, side, side), value)
    return StepInputs(
        x_0=latents,
        noise=latents + 1,
        input_noise=None,
        t=torch.zeros(size, dtype=torch.int64),
        conditioning=Conditioning({"states": torch.zeros(size, 3)}),
        weights=torch.ones(size),
        mask=None,
    )


def step(graphs, *batches):
    """Run a step of some batches; return their losses."""
    size = sum(len(one.t) for one in batches)
    outputs = [graphs.micro_step(one, 1 / size, size=4) for one in batches]
    graphs.update.apply(sum(loss for _, loss in outputs))
    return [output.losses.tolist() for output, _ in outputs]


@pytest.mark.parametrize("name", ["weight", "frozen"])
def test_weights_that_were_moved_are_recorded_anew(name, graphs):
    """A moved trained weight, or a moved buffer read beside it, causes a new recording."""
    graphs, network, recorder = graphs
    weight, moved = network.weight, getattr(network, name)
    for _ in range(4):
        step(graphs, batch(4))
    assert (recorder.ran, recorder.recorded) == (2 + 1, 1 + 1)
    graphs.forget_if_moved()
    step(graphs, batch(4))
    assert recorder.recorded == 2
    moved.data = moved.data.clone()
    graphs.forget_if_moved()
    before = weight.item()
    step(graphs, batch(4))
    assert recorder.recorded == 4
    assert weight.item() != before


def test_weights_that_move_before_the_first_shape_is_recorded_are_noticed(graphs):
    """The update is recorded as early as step 2, and would update the old memory."""
    graphs, network, recorder = graphs
    for _ in range(2):
        step(graphs, batch(4))
    assert recorder.recorded == 1
    network.weight.data = network.weight.data.clone()
    graphs.forget_if_moved()
    before = network.weight.item()
    step(graphs, batch(4))
    assert recorder.recorded == 3
    assert network.weight.item() != before


@pytest.mark.parametrize(
    ("calls_without", "sides"), [(1, [2, 2]), (2, [2, 2, 2]), (3, [2, 2, 2, 4])]
)
def test_a_parameter_whose_first_gradient_comes_late_is_named(calls_without, sides):
    """In an eager step, while a step is recorded, and in a step with a new shape."""
    network, calls = nn.ParameterDict({"early": torch.ones(1), "late": torch.ones(1)}), []

    def losses(tensors):
        calls.append(1)
        late = network["late"] if len(calls) > calls_without else 1.0
        output = network["early"] * tensors.x_0 * late
        return (output - tensors.noise).square().mean(dim=(1, 2, 3)) * tensors.weights

    graphs, _ = graphs_of(network, losses)
    for side in sides[:-1]:
        step(graphs, batch(4, side=side))
    with pytest.raises(NotRecordableError, match="late has a gradient now and had none"):
        step(graphs, batch(4, side=sides[-1]))


class SlowEvent:
    """An event of a GPU that finishes nothing until the host waits; then all earlier work is
    done."""

    done = 0

    def __init__(self, number):
        self.number = number

    def query(self):
        return self.number <= SlowEvent.done

    def synchronize(self):
        SlowEvent.done = self.number


def test_the_host_is_few_steps_ahead(monkeypatch):
    """Before step 4 it waits for step 1 only, and not at all if the GPU has finished that."""
    monkeypatch.setattr(SlowEvent, "done", 0)
    events = [SlowEvent(number) for number in range(9)]  # the end of step `number`
    queue = StepQueue(iter(events).__next__)
    left = []
    for step in range(1, 8):
        queue.begin_step()
        left.append(step - 1 - SlowEvent.done)
    assert left == [0, 1, 2, 2, 2, 2, 2]
    SlowEvent.done = 99
    queue.begin_step()
    assert SlowEvent.done == 99


def test_losses_are_those_of_the_samples_that_are_real(graphs):
    graphs, network, _ = graphs
    for _ in range(3):
        step(graphs, batch(4), batch(2, 2.0))
    weight = network.weight.item()
    found = step(graphs, batch(3), batch(1, 2.0))
    assert found == [
        pytest.approx([(weight * value - (value + 1)) ** 2] * count)
        for count, value in ((3, 1.0), (1, 2.0))
    ]


def test_inputs_that_learn_are_refused(graphs):
    graphs, *_ = graphs
    with pytest.raises(ConfigError, match="trained conditioner or noise"):
        step(graphs, batch(4).map(lambda x: x.requires_grad_() if x.dim() == 2 else x))


def test_each_shape_of_batches_has_memory_for_its_graph(train_config):
    """Buckets times caption lengths, up to the maximum recorded; none without graphs."""

    def taken(buckets, graphs="step", **model):
        config = train_config(training={"cuda_graphs": graphs}, model=model)
        return workspace_bytes(config, "cuda", buckets)

    one = taken(1)
    assert one >= taken(1, "off") + 2 * GRAPH  # besides workspaces of the recording stream
    assert taken(5) - one == 4 * GRAPH
    assert taken(5, max_tokens=225) - one == 14 * GRAPH
    assert taken(5, max_tokens=225, token_join="kohya") == taken(5)
    assert taken(1000) - one == (MOST_GRAPHS - 1) * GRAPH
    assert taken(5, "off") == taken(1, "off")


def test_the_plan_knows_the_buckets_of_all_datasets(train_config):
    config = train_config()
    found = survey(config, SilentProgress())
    wanted = {image.bucket for image in found.plan.images}
    assert Workload.of(config, found).buckets == len(wanted) > 1


def test_the_plan_counts_what_graphs_keep(train_config, nano_model):
    """All gradients, and a step's activations, are counted in every phase beside steps."""
    found = {}
    for graphs in ("off", "step"):
        config = train_config(
            model={"path": str(nano_model)},
            training={"cuda_graphs": graphs, "mixed_precision": "bf16"},
            previews={"prompts": ["a ball"], "width": 32, "height": 32},
        )
        predictor = FootprintPredictor(
            lambda: load_meta_model(str(nano_model)),
            "cuda",
            workload=Workload(Size(64, 64), buckets=9),
        )
        phases = predictor.all_phases(config, Size(64, 64), 4)
        found[graphs] = {phase.phase.partition(" ")[0]: phase for phase in phases}
    plain, graphed = found["off"], found["step"]
    assert graphed["training"].workspace >= plain["training"].workspace + (9 + 1) * GRAPH
    gradients = graphed["training"].gradients
    assert gradients >= plain["training"].gradients
    assert graphed["training"].activations > 1.9 * plain["training"].activations
    pool = graphed["training"].activations // 2
    assert graphed["drawing"].gradients == gradients > plain["drawing"].gradients
    assert graphed["drawing"].activations == plain["drawing"].activations + pool
    assert graphed["encoding"].gradients == plain["encoding"].gradients == 0  # before all that
    assert graphed["encoding"].activations == plain["encoding"].activations
