"""Groups, fused kernels, rates, and the note about keys that are not used."""

from __future__ import annotations

import re

import pytest
import torch
from family_helpers import tiny_model
from torch import nn

from trainer.errors import UsageError
from trainer.optim.optimizers import build_optimizer, set_rates
from trainer.recipe.sections import OptimConfig
from trainer.recipe.unused import unused_keys
from trainer.recipe_loading import load_recipe


class Tiny(nn.Module):
    """Every kind of parameter: embedding tied to the output, matrices, bias, norm, a frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(4, 7, bias=True)
        self.embedding = nn.Embedding(7, 4)
        self.output.weight = self.embedding.weight
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.output(self.norm(self.frozen(self.hidden(self.embedding(ids)))))


def names_by_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {g["name"]: [names[id(p)] for p in g["params"]] for g in optimizer.param_groups}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_groups(name: str) -> None:
    model = Tiny()
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.25, weight_decay=0.1))
    assert names_by_group(model, optimizer) == {
        "decay": ["hidden.weight"],
        "no_decay": ["output.weight", "output.bias", "hidden.bias", "norm.weight", "norm.bias"],
    }
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["base_lr"] for g in optimizer.param_groups] == [0.25, 0.25]
    assert bool(optimizer.defaults["fused"]) == (name == "adamw")


def test_parameters_partitioned_by_zero3_are_grouped_by_full_shape() -> None:
    model = nn.Linear(4, 4)
    model.weight.ds_shape = model.weight.shape  # what deepspeed.zero.Init leaves
    model.weight.data = torch.empty(0)
    model.bias.ds_shape = model.bias.shape
    assert names_by_group(model, build_optimizer(model, OptimConfig())) == {"decay": ["weight"], "no_decay": ["bias"]}


class UnusualParameters(nn.Module):
    """What looks like a matrix and is none, and matrices that do not look like one."""

    def __init__(self) -> None:
        super().__init__()
        self.r_w_bias = nn.Parameter(torch.zeros(2, 4))  # XLNet
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 8))  # experts of GPT-OSS
        self.seg_embed = nn.Parameter(torch.zeros(2, 2, 4))
        self.mask_emb = nn.Parameter(torch.zeros(1, 1, 4))
        self.time_mix_key = nn.Parameter(torch.zeros(1, 1, 4))  # RWKV
        self.A_log = nn.Parameter(torch.zeros(4, 4))  # Mamba
        self.position_embeddings = nn.ParameterList([torch.zeros(8, 1, 4), torch.zeros(1, 8, 4)])  # Reformer
        self.norm = nn.LayerNorm([2, 4])
        self.gate_up_proj = nn.Parameter(torch.zeros(3, 4, 8))
        self.q = nn.Parameter(torch.zeros(4, 2, 4))  # XLNet
        self.embeddings_project = nn.Linear(4, 4)  # ELECTRA
        self.score = nn.Linear(4, 1)
        self.convolution = nn.Conv1d(4, 4, 1)


def test_only_matrices_decay() -> None:
    model = UnusualParameters()
    found = names_by_group(model, build_optimizer(model, OptimConfig(weight_decay=0.1)))
    assert set(found["decay"]) == {
        "gate_up_proj", "q", "embeddings_project.weight", "score.weight", "convolution.weight",
    }  # fmt: skip


FAMILIES = {
    "AutoModelForSequenceClassification": (
        "albert", "bart", "bert", "big_bird", "convbert", "deberta-v2", "distilbert", "electra", "fnet", "gpt2",
        "longformer", "mobilebert", "modernbert", "mpnet", "nystromformer", "reformer", "roberta", "roformer", "t5",
        "xlnet",
    ),
    "AutoModelForCausalLM": ("gemma2", "gpt_neox", "gpt_oss", "llama", "mamba", "mixtral", "opt", "rwkv", "xglm"),
}  # fmt: skip


@pytest.mark.parametrize(("auto", "family"), [(auto, name) for auto, names in FAMILIES.items() for name in names])
def test_no_bias_norm_or_embedding_of_a_family_decays(auto: str, family: str) -> None:
    """Every linear layer does, unless its matrix is tied to an embedding."""
    with torch.device("meta"):
        model = tiny_model(family, auto)
    decays = set(names_by_group(model, build_optimizer(model, OptimConfig(weight_decay=0.1)))["decay"])
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d)}
    untied = {name for name, p in model.named_parameters() if name in linear and id(p) not in embeddings}
    assert untied <= decays
    odd = re.compile(r"bias|norm|embed|_emb$|A_log", re.IGNORECASE)
    assert {name for name in decays - untied if odd.search(name)} == set()


def test_an_empty_group_is_left_out() -> None:
    assert [g["name"] for g in build_optimizer(nn.Linear(2, 2, bias=False), OptimConfig()).param_groups] == ["decay"]
    assert [g["name"] for g in build_optimizer(nn.LayerNorm(2), OptimConfig()).param_groups] == ["no_decay"]


def test_nothing_to_train() -> None:
    with pytest.raises(UsageError, match="frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_nesterov_without_momentum() -> None:
    with pytest.raises(UsageError, match=r"optim\.nesterov.*optim\.momentum"):
        build_optimizer(Tiny(), OptimConfig(name="sgd", nesterov=True))


def test_no_fused_kernel_on_a_device_without_one() -> None:
    with torch.device("meta"):
        model = Tiny()
    assert build_optimizer(model, OptimConfig()).defaults["fused"] is None


@pytest.mark.parametrize(
    ("optim", "plain"),
    [
        (
            OptimConfig(name="adamw", lr=0.01, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.1),
            lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-5, fused=False, foreach=False),
        ),
        (
            OptimConfig(name="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
            lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=False, foreach=False),
        ),
    ],
    ids=["adamw", "sgd"],
)
def test_five_steps_are_those_of_the_plain_optimizer(optim: OptimConfig, plain) -> None:
    torch.manual_seed(0)
    mine, reference = Tiny(), Tiny()
    reference.load_state_dict(mine.state_dict())
    built = build_optimizer(mine, optim)
    matrices = [p for n, p in reference.named_parameters() if n == "hidden.weight"]
    rest = [p for n, p in reference.named_parameters() if n != "hidden.weight" and not n.startswith("frozen")]
    expected = plain([{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])
    frozen = mine.frozen.weight.clone()
    for _ in range(5):
        for model, optimizer in ((mine, built), (reference, expected)):
            optimizer.zero_grad()
            model(torch.tensor([[1, 2, 6]])).square().sum().backward()
            optimizer.step()
    for (name, a), b in zip(mine.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(mine.frozen.weight, frozen)


def test_relative_rates_are_those_of_the_first_numbers() -> None:
    """Small tensors take small steps, like ones share a group, and what is 0 moves, too."""
    model = Tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.hidden.weight.normal_(std=2**-4.5)
        model.hidden.bias.fill_(-2.0)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.1, relative_rates=True))
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.hidden.weight)] == pytest.approx(0.1 * 2**-4.5)
    assert rates[id(model.hidden.bias)] == pytest.approx(0.2)
    others = {rates[id(p)] for p in model.parameters() if p.requires_grad and not p.any()}
    assert others == {0.1 * 2**-10}
    assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)


def test_set_rates_starts_from_the_base_rate_each_time() -> None:
    model = Tiny()
    depths = {name: int(name.startswith("hidden")) for name, _ in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(name="sgd", lr=0.5, layer_decay=0.9), depths)
    assert [g["name"] for g in optimizer.param_groups] == ["no_decay.0", "decay.1", "no_decay.1"]
    for _ in range(2):
        set_rates(optimizer, {0: 0.0, 1: 0.5}.__getitem__)
        assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.25, 0.25]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"hidden.weight", "hidden.bias"}


def test_a_head_has_a_separate_rate() -> None:
    model = Tiny()
    depths = {name: 0 if name.startswith("norm") else 1 for name, _ in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(name="sgd", lr=0.5, head_lr=2.0), depths)
    assert {g["name"]: g["base_lr"] for g in optimizer.param_groups} == {
        "no_decay.0": 2.0, "decay.1": 0.5, "no_decay.1": 0.5,
    }  # fmt: skip
    for wanted in ({"head_lr": 2.0}, {"layer_decay": 0.9}, {"unfreeze": 0.1}):
        with pytest.raises(UsageError, match=f"optim.{next(iter(wanted))}: Tiny is not divided into trunk and head"):
            build_optimizer(model, OptimConfig(**wanted))


def unused(optim: OptimConfig) -> list[str]:
    recipe = load_recipe("demo-translation").model_copy(update={"optim": optim})
    return [key.removeprefix("optim.") for key in unused_keys(recipe)]


def test_unused() -> None:
    assert unused(OptimConfig()) == []
    assert unused(OptimConfig(name="adamw", momentum=0.9, nesterov=True, ratio=10.0)) == [
        "momentum",
        "nesterov",
        "ratio",
    ]
    assert unused(OptimConfig(name="sgd", momentum=0.9, betas=(0.9, 0.98), eps=1e-9)) == ["betas", "eps"]
    triangular = OptimConfig(schedule="slanted_triangular", warmup_steps=10, cut_fraction=0.2)
    assert unused(triangular) == ["warmup_steps"]
    assert unused(OptimConfig(plateau={"patience": 3})) == ["plateau"]
    assert unused(OptimConfig(schedule="plateau", plateau={"patience": 3})) == []
    assert unused(OptimConfig(averaging={"kind": "last", "last": 3, "decay": 0.9})) == ["averaging.decay"]
    assert unused(OptimConfig(averaging={"kind": "ema", "decay": 0.9})) == []


def test_a_resolved_recipe_gives_no_notes() -> None:
    """It writes all defaults out, which the user never set."""
    resolved = OptimConfig.model_validate(OptimConfig().model_dump())
    assert unused(resolved) == []
