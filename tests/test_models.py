"""The laws of the cut, over families of networks that have nothing in common."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations, spectral_norm

from regraft.errors import UserError
from regraft.models.backbone import (
    Backbone,
    TracedModel,
    get_input_rules,
    load_backbone,
    replace_weights,
)
from regraft.models.compile import compile_prefix, count_multiply_adds, has_compiler
from regraft.models.costs import describe_layers, layer_multiply_adds
from regraft.models.cut import cut_backbone
from regraft.models.joint import merge_prefixes
from regraft.models.layers import distance_to_head, earliest_layer
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn, use_channels_last
from regraft.models.parts import Prefix
from regraft.models.pool import BackbonePool, source_key
from regraft.models.weights import source_classifier
from regraft.options import DEFAULT_BACKBONE, CacheOptions
from regraft.plans.schema import InputRules, Phase, Plan
from tiny import Recorder, fit_tiny

TINY = [
    "test_byobnet",
    "test_coatnet",
    "test_convnext",
    "test_convnext2",
    "test_convnext3",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "test_vit_relpos",
]
LARGER = [
    "vgg11_bn",
    "densenet121",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_small_050",
    "regnety_002",
    "resnetv2_50x1_bit",
    "inception_v3",
    "fastvit_t8",
    "efficientvit_b0",
    "repvgg_a0",
    "ghostnet_050",
    "deit_tiny_patch16_224",
    "xception41",
    "eva02_tiny_patch14_224",
    "tf_efficientnet_lite0",
]
FAMILIES = [*TINY, *LARGER]
UNREAD_BUFFERS = {"eva02_tiny_patch14_224": 1}  # a buffer that its forward never reads


def side(name: str) -> int | None:
    """A small resolution where the family allows one."""
    return (
        None
        if any(word in name for word in ("swin", "vit", "maxvit", "coatnet", "eva", "inception"))
        else 64
    )


def wrap(net: nn.Module) -> Backbone:
    """Return a network of our own as a backbone for images of 8 px."""
    rules = InputRules((0, 0, 0), (1, 1, 1), "bilinear")
    return Backbone("net", TracedModel(net), rules, "", 8, 8, False)


def cuts(source: Backbone) -> list[str]:
    stages = list(source.stages)
    return list(dict.fromkeys(["all", stages[len(stages) // 3], stages[-1], "head"]))


def head_digest(source: Backbone) -> str:
    return cut_backbone(source, "head")[0].digest()


def tensors(module: nn.Module) -> list[int]:
    return [id(tensor) for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize(
    ("names", "fewest_fused"),
    [(TINY, 5), pytest.param(LARGER, 10, marks=pytest.mark.slow)],
)
def test_the_laws_of_the_cut_hold_over_families(names: list[str], fewest_fused: int) -> None:
    cuts_seen = fused = 0
    for name in names:
        source = load_backbone(name, "random", side(name))
        torch.manual_seed(0)
        images = torch.randn(2, 3, source.resolution, source.resolution)
        for train in cuts(source):
            check_halves(source, train, images)
            cuts_seen += 1
        fused += check_folding(source)
    assert cuts_seen >= 4 * len(names) - 2
    assert fused >= fewest_fused
    assert len(FAMILIES) == len(TINY) + len(LARGER) >= 32


def check_halves(source: Backbone, train: str, images: torch.Tensor) -> None:
    """The halves make the whole, own everything once, and gradients reach all that is trained."""
    case = (source.name, train)
    whole = set(tensors(source.model))
    prefix, suffix = cut_backbone(source, train)
    suffix.eval()
    features = [value.clone() for value in prefix(images)]
    with torch.no_grad():
        assert torch.equal(suffix(*features), source.model.eval()(images)), case
    owned = [tensor for tensor in tensors(prefix) + tensors(suffix) if tensor in whole]
    assert len(owned) == len(set(owned)), case
    unread = UNREAD_BUFFERS.get(source.name, 0)
    assert len(whole) - len(owned) == unread, case
    for parameter in (*prefix.parameters(), *suffix.parameters()):
        assert id(parameter) in whole, case
    if list(suffix.parameters()):
        suffix.train()(*features).square().sum().backward()
        without = [key for key, value in suffix.named_parameters() if value.grad is None]
        assert without == [], case
    assert all(value.grad is None for value in prefix.parameters()), case
    source.model.zero_grad(set_to_none=True)


def check_folding(source: Backbone) -> bool:
    """Folding changes rounding only and leaves the original alone; returns whether it folded."""
    torch.manual_seed(1)
    for module in source.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and has_statistics(module):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    prefix, _ = cut_backbone(source, "head")
    before = prefix.digest()
    quick = fuse_conv_bn(prefix)
    images = torch.randn(2, 3, source.resolution, source.resolution)
    for plain, fast in zip(prefix(images), quick(images), strict=True):
        assert float((plain - fast).norm()) <= 1e-4 * float(plain.norm()), source.name
    assert prefix.digest() == before, source.name
    return count_norms(quick) < count_norms(prefix)


def has_statistics(module: nn.modules.batchnorm._BatchNorm) -> bool:
    return module.running_mean is not None and module.running_var is not None


def count_norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.slow
def test_a_frozen_part_never_changes_whatever_is_done_to_it() -> None:
    for name in TINY:
        source = load_backbone(name, "random", side(name))
        prefix, suffix = cut_backbone(source, list(source.stages)[-1])
        before = prefix.digest()
        model = nn.ModuleList([prefix, suffix]).train()
        assert not any(module.training for module in prefix.modules())
        optimizer = torch.optim.SGD(suffix.parameters(), lr=0.1)
        for _ in range(2):
            images = torch.randn(4, 3, source.resolution, source.resolution)
            suffix(*(value.clone() for value in prefix(images))).square().mean().backward()
            optimizer.step()
        assert prefix.digest() == before, name
        assert len(model) == 2
    assert len(TINY) == 17


def test_the_digest_sees_one_flipped_bit_and_the_statistics() -> None:
    source = load_backbone("test_resnet", "random", 64)
    prefix, _ = cut_backbone(source, "head")
    seen = {prefix.digest()}
    with torch.no_grad():
        next(prefix.parameters()).view(-1)[0] += 1e-3
        seen.add(prefix.digest())
        next(buffer for name, buffer in prefix.named_buffers() if "running_mean" in name)[0] += 1e-3
        seen.add(prefix.digest())
    assert len(seen) == 3


def test_the_cut_slides_past_pooling_so_that_little_is_kept() -> None:
    found = {
        name: cut_backbone(load_backbone(name, "random", 64), "head")[0].shapes
        for name in ("densenet121", "tf_efficientnet_lite0", "test_vit")
    }
    assert found == {
        "densenet121": ((1024,),),
        "tf_efficientnet_lite0": ((1280,),),
        "test_vit": ((64,),),
    }


def test_features_may_be_taken_anywhere_and_side_by_side() -> None:
    source = load_backbone("tf_efficientnet_lite0", "random", 64)
    images = torch.randn(2, 3, 64, 64)
    one = cut_backbone(source, "head", ["blocks.3"])[0](images)[0]
    two = cut_backbone(source, "head", ["blocks.5"])[0](images)[0]
    both = cut_backbone(source, "head", ["blocks.3", "blocks.5"])[0](images)[0]
    assert torch.equal(both, torch.cat([one, two], dim=1))
    flat = cut_backbone(source, "head", ["blocks.5"], flatten=True)[0](images)[0]
    assert torch.allclose(flat.view(2, 192, -1).mean(dim=2), two, atol=1e-5)


def test_what_lies_behind_the_place_of_the_features_is_cut_off() -> None:
    source = load_backbone("vgg11_bn", "random", 64)
    prefix, suffix = cut_backbone(source, "features.8", ["features.15"])
    names = {name for name, _ in (*prefix.named_parameters(), *suffix.named_parameters())}
    assert not any("pre_logits" in name or "features.25" in name for name in names)
    with pytest.raises(
        UserError, match="Training was to start at 'features.22', which lies after 'features.15'"
    ):
        cut_backbone(source, "features.22", ["features.15"])


def test_functional_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):  # type: ignore[no-untyped-def]
            frozen = nn.functional.dropout(self.a(x).mean((2, 3)), 0.5, training=self.training)
            return self.c(nn.functional.dropout(self.b(frozen), 0.5, training=self.training))

    net = Net()
    source = wrap(net)
    prefix, suffix = cut_backbone(source, "b")
    features = tuple(value.clone() for value in prefix(torch.ones(64, 3, 8, 8)))
    assert torch.equal(features[0][0], features[0][1])  # off in the frozen part, whatever the mode
    assert torch.equal(suffix.eval()(*features)[0], suffix(*features)[1])
    assert not torch.equal(suffix.train()(*features)[0], suffix(*features)[1])


def test_dropout_between_the_halves_stays_on_the_trained_side() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    source = wrap(net)
    prefix, suffix = cut_backbone(source, "1")
    assert not any(
        isinstance(module, nn.ReLU) for module in suffix.modules()
    )  # slid over the border
    assert [type(module) for module in suffix.modules() if isinstance(module, nn.Dropout)] == [
        nn.Dropout
    ]
    assert not any(isinstance(module, nn.Dropout) for module in prefix.modules())


def test_a_module_on_both_sides_is_refused_in_a_sentence() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.a(self.b(self.a(x))).mean((2, 3))

    source = wrap(Twice())
    with pytest.raises(UserError, match="used on both sides of the cut"):
        cut_backbone(source, "b")


def test_an_untraceable_network_is_refused_in_a_sentence() -> None:
    class Wild(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x if x.sum() > 0 else -x

    source = wrap(Wild())
    with pytest.raises(UserError, match="cannot be traced by torch.fx"):
        cut_backbone(source, "all")


def test_the_embedded_weights_are_complete_and_its_rules_follow_them() -> None:
    source = load_backbone("tf_efficientnet_lite0", resolution=64)
    assert source.rules == InputRules((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    other = load_backbone("tf_efficientnet_lite0", "random", 64)
    same = [
        key
        for key, value in source.model.state_dict().items()
        if value.ndim and torch.equal(value, other.model.state_dict()[key])
    ]
    assert same == []


def test_random_weights_follow_the_seed() -> None:
    digests = [
        cut_backbone(load_backbone("test_resnet", "random", 64, seed), "head")[0].digest()
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_the_ladder_adds_up() -> None:
    for name in ("tf_efficientnet_lite0", "densenet121", "test_vit", "test_vit3"):
        source = load_backbone(name, "random", side(name))
        for fine in (False, True):
            rungs = describe_layers(source, fine)
            counts = [p.numel() for key, p in source.model.named_parameters() if "." in key]
            assert sum(rung.parameters for rung in rungs) == sum(counts)
            assert all(rung.map_bytes > 0 and rung.multiply_adds >= 0 for rung in rungs)
    lite = describe_layers(load_backbone("tf_efficientnet_lite0", "random", 224))
    # the paper of EfficientNet-Lite0 says 407 M with its classifier
    assert 380e6 < sum(rung.multiply_adds for rung in lite) < 420e6


FEW = ["test_resnet", "test_vit", "test_efficientnet", "test_byobnet", "test_maxvit"]
REST = [*(name for name in TINY if name not in FEW), DEFAULT_BACKBONE]


@pytest.mark.parametrize("architectures", [FEW, pytest.param(REST, marks=pytest.mark.slow)])
def test_weights_filled_in_later_are_those_that_a_network_is_loaded_with(
    architectures: list[str], tmp_path: Path
) -> None:
    cases = 0
    for name in architectures:
        expected = load_backbone(name, "random", side(name), seed=5)
        digest = head_digest(expected)
        file = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(expected.model.state_dict(), file)
        blank = load_backbone(name, "random")
        names = (blank.stages, blank.blocks)
        for weights in ("random", str(file)):
            other = replace_weights(blank, "random", side(name), seed=9)
            assert head_digest(other) != digest, name
            filled = replace_weights(other, weights, side(name), seed=5)
            assert head_digest(filled) == digest, (name, weights)
            assert filled.traced is blank.traced  # one network, one trace
            assert (filled.stages, filled.blocks) == names == (expected.stages, expected.blocks)
            assert filled.resolution == expected.resolution
            cases += 1
    assert cases == 2 * len(architectures) >= 10


def test_installed_weights_are_filled_in_later_too() -> None:
    expected = load_backbone(resolution=64, name=DEFAULT_BACKBONE)
    filled = replace_weights(load_backbone(DEFAULT_BACKBONE, "random"), resolution=64)
    assert head_digest(filled) == head_digest(expected)
    assert (filled.weights, filled.rules) == (expected.weights, expected.rules)


def test_weights_that_timm_fetches_are_filled_in_later_too(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def fetch(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        """Stand in for timm's loading: the weights that it fetches are all 0.5."""
        model = create(name, pretrained=False, **options)
        if pretrained:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(0.5)
        return model

    monkeypatch.setattr("timm.create_model", fetch)
    filled = replace_weights(load_backbone("test_resnet", "random", 64), resolution=64)
    assert head_digest(filled) == head_digest(load_backbone("test_resnet", resolution=64))
    assert filled.weights == "pretrained default weights of timm"


def test_a_network_of_fixed_resolution_is_built_anew_for_another_one() -> None:
    blank = load_backbone("deit_tiny_patch16_224", "random")
    assert blank.fixed
    filled = replace_weights(blank, "random", 64, seed=2)
    expected = load_backbone("deit_tiny_patch16_224", "random", 64, seed=2)
    assert head_digest(filled) == head_digest(expected)
    assert filled.traced is not blank.traced
    same = replace_weights(filled, "random", 64, seed=3)
    assert same.traced is filled.traced


TAGGED = [
    "resnet18.a1_in1k",
    "resnet18.fb_swsl_ig1b_ft_in1k",
    "vit_tiny_patch16_224.augreg_in21k",
    "tf_efficientnet_b0_ns",  # deprecated: timm has no configuration of that name
]


@pytest.mark.parametrize(
    "architectures", [[*TINY, *TAGGED], pytest.param(LARGER, marks=pytest.mark.slow)]
)
def test_input_rules_need_no_network_and_are_those_of_the_loaded_one(
    architectures: list[str],
) -> None:
    rules = set()
    for name in architectures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm says what is deprecated
            assert get_input_rules(name) == load_backbone(name, "random").rules, name
            rules.add(get_input_rules(name))
    assert len(architectures) >= 15
    assert len(rules) >= 3
    with pytest.raises(UserError, match="No backbone is called 'resnet5'"):
        get_input_rules("resnet5")


def test_the_code_that_digests_see_does_not_depend_on_where_gather_is() -> None:
    prefix, _ = cut_backbone(load_backbone("test_resnet", "random", 64), "head")
    assert "regraft_backbone_halves_gather(" in prefix.code  # as in version 0.1


def test_depth_counts_stages_from_the_head() -> None:
    source = load_backbone("test_resnet", "random", 64)
    below = distance_to_head(source)
    assert below("layer4.0.conv1.weight") == 1
    assert below("layer1.0.conv1.weight") == 4
    assert below("conv1.weight") == 5
    assert earliest_layer(source, ["head", "layer3", "layer2"]) == "layer2"
    assert earliest_layer(source, ["layer2", "all"]) == "all"


def test_weights_come_from_files(tmp_path: Path) -> None:
    model = load_backbone("test_resnet", "random", 64, seed=5).model
    state = model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth"
    )
    with_head = {**state, "fc.weight": torch.zeros(7, 96), "fc.bias": torch.zeros(7)}
    torch.save(with_head, tmp_path / "head.pth")
    for file in ("w.safetensors", "w.pth", "head.pth"):
        found = load_backbone("test_resnet", str(tmp_path / file), 64).model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in state.items()), file


def test_weights_that_do_not_fit_are_refused_in_a_sentence(tmp_path: Path) -> None:
    state = load_backbone("test_resnet", "random", 64).model.state_dict()
    first = next(iter(state))
    torch.save(
        {key: value for key, value in state.items() if key != first}, tmp_path / "missing.pth"
    )
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "extra.pth")
    torch.save({**state, first: torch.zeros(1)}, tmp_path / "shape.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "object.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    cases = {
        "missing.pth": "1 missing",
        "extra.pth": "1 unknown (extra.weight)",
        "shape.pth": "1 of another shape",
        "object.pth": "holds no readable weights",
        "broken.safetensors": "holds no readable weights",
        "none.pth": "is neither 'pretrained', 'random' nor a file",
    }
    for file, says in cases.items():
        with pytest.raises(UserError) as caught:
            load_backbone("test_resnet", str(tmp_path / file), 64)
        assert says in str(caught.value), file
    assert len(cases) == 6


def test_without_a_network_three_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError) as caught:
        load_backbone("resnet50")
    text = str(caught.value)
    assert all(
        way in text
        for way in ("--weights FILE", "--weights random", "--backbone tf_efficientnet_lite0")
    )


def test_unknown_names_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="No backbone is called 'resnet5'. Did you mean"):
        load_backbone("resnet5")
    with pytest.raises(UserError, match="cannot take images of 32 px"):
        cut_backbone(load_backbone("inception_v3", "random", 32), "head")
    with pytest.raises(UserError, match="has no stage 'layer9'. Nearest: layer"):
        cut_backbone(load_backbone("test_resnet", "random", 64), "layer9")


def test_the_digest_sees_settings_that_are_no_weights() -> None:
    one, other = (
        load_backbone(name, "random", 64) for name in ("efficientnet_b0", "tf_efficientnet_b0")
    )
    other.model.load_state_dict(
        one.model.state_dict()
    )  # the same numbers, but other padding and other epsilons
    assert cut_backbone(one, "head")[0].digest() != cut_backbone(other, "head")[0].digest()


def test_the_word_end_means_the_end_of_the_network_alone_or_among_places() -> None:
    seen = 0
    for name in ("test_resnet", "test_efficientnet", "test_vit"):
        source = load_backbone(name, "random", 32 if "vit" not in name else None)
        images = torch.randn(2, 3, source.resolution, source.resolution)
        place = list(source.blocks)[1]
        apart = [cut_backbone(source, "head", (end,))[0](images)[0] for end in (place, "end")]
        together = cut_backbone(source, "head", (place, "end"))[0](images)[0]
        assert torch.equal(torch.cat(apart, dim=1), together)
        assert torch.equal(apart[1], cut_backbone(source, "head")[0](images)[0])
        seen += 1
    assert seen == 3


def test_the_work_of_all_blocks_is_that_of_all_stages() -> None:
    source = load_backbone("test_resnet", "random", 32)
    blocks, stages = layer_multiply_adds(source, fine=True), layer_multiply_adds(source)
    assert list(blocks) == list(source.blocks)
    assert sum(blocks.values()) == sum(stages.values()) > 0
    assert {place.name: place.multiply_adds for place in describe_layers(source)} == stages
    assert sum(layer_multiply_adds(source.at(64)).values()) == pytest.approx(
        4 * sum(stages.values()), rel=0.05
    )


def test_the_classifier_comes_with_its_weights_or_not_at_all(tmp_path: Path) -> None:
    weight, bias = source_classifier(DEFAULT_BACKBONE, "pretrained")  # type: ignore[misc]
    assert (weight.shape, bias.shape) == ((1000, 1280), (1000,))
    whole = timm.create_model("test_resnet", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    weight, bias = source_classifier("test_resnet", str(tmp_path / "whole.pth"))  # type: ignore[misc]
    assert torch.equal(weight, whole.get_classifier().weight)  # type: ignore[union-attr]
    source = load_backbone("test_resnet", str(tmp_path / "whole.pth"))
    images = torch.randn(2, 3, source.resolution, source.resolution)
    said = torch.nn.functional.linear(cut_backbone(source, "head")[0](images)[0], weight, bias)
    assert torch.allclose(
        said, whole.eval()(images), atol=1e-5
    )  # it takes the features at the end of the network
    torch.save(
        {key: value for key, value in whole.state_dict().items() if not key.startswith("fc")},
        tmp_path / "body.pth",
    )
    assert source_classifier("test_resnet", str(tmp_path / "body.pth")) is None
    assert source_classifier("test_resnet", "random") is None


def test_what_lies_behind_the_last_block_is_a_place_of_its_own() -> None:
    for name, last, tail in (
        ("tf_efficientnet_lite0", "blocks.6", "conv_head"),
        ("test_vit", "blocks.5", "norm"),
    ):
        source = load_backbone(name, "random")
        assert list(source.blocks)[-2:] == [last, tail]
        assert (
            list(source.stages)[-1] == last
        )  # a stage keeps its tail: training it trains the tail too
        images = torch.randn(1, 3, source.resolution, source.resolution)
        block, end = (
            cut_backbone(source, "head", (place,))[0](images)[0] for place in (last, tail)
        )
        assert block.shape != end.shape or not torch.equal(block, end)
        assert sum(p.numel() for p in cut_backbone(source, last)[1].parameters()) == sum(
            p.numel()
            for key, p in source.model.named_parameters()
            if key.startswith((last + ".", "conv_head", "bn2", "norm.", "fc_norm"))
        )


def test_a_flattened_head_takes_the_last_map_with_the_tail_before_it() -> None:
    source = load_backbone("tf_efficientnet_lite0", "random", 96)
    assert cut_backbone(source, "head", flatten=True)[0].shapes[0].numel() == 1280 * 3 * 3
    assert cut_backbone(source, "head")[0].shapes[0].numel() == 1280


# several frozen parts in one, folded, cast and compiled


def parts_of(source: Backbone) -> list[Prefix]:
    """Every stage as a border, its pooled features, and all of them side by side."""
    stages = tuple(source.stages)
    parts = [cut_backbone(source, stage)[0] for stage in stages[1:]]
    parts += [cut_backbone(source, "head", (stage,))[0] for stage in stages]
    return [*parts, cut_backbone(source, "head", stages)[0], cut_backbone(source, "head")[0]]


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_vit", "densenet121", "tf_efficientnet_lite0"]
)
def test_many_frozen_parts_in_one_pass_say_what_each_says_alone(name: str) -> None:
    torch.manual_seed(0)
    source = load_backbone(name, "random", None if name == "test_vit" else 32)
    images = torch.randn(3, 3, source.resolution, source.resolution)
    prefixes = parts_of(source)
    together = merge_prefixes(prefixes)
    apart = [out for prefix in prefixes for out in prefix(images)]
    assert len(prefixes) >= 5
    assert len(together.shapes) == len(apart)
    for left, right, shape in zip(together(images), apart, together.shapes, strict=True):
        assert torch.equal(left, right)
        assert left.shape[1:] == shape
    works = [count_multiply_adds(prefix, images) for prefix in prefixes]
    assert count_multiply_adds(together, images) <= max(works) * 1.001 < sum(works)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "tf_efficientnet_lite0"])
def test_weights_cast_once_say_what_weights_cast_every_time_say(name: str) -> None:
    source = load_backbone(name, "random", None if name == "test_vit" else 32)
    images = torch.randn(2, 3, source.resolution, source.resolution)
    prefix, _ = cut_backbone(source, "head")
    with torch.autocast("cpu", torch.bfloat16):
        once = cast_bfloat16(fuse_conv_bn(prefix))(images)[0]
        assert torch.equal(fuse_conv_bn(prefix)(images)[0], once)
    assert all(parameter.dtype == torch.float32 for parameter in prefix.parameters())


def test_a_compiled_frozen_part_says_the_same() -> None:
    if not has_compiler():
        pytest.skip("there is no C++ compiler here")
    source, recorder = load_backbone("test_resnet", "random", 32), Recorder()
    quick = fuse_conv_bn(cut_backbone(source, "head")[0])
    images = torch.randn(4, 3, 32, 32)
    compiled = compile_prefix(quick, images, recorder)
    if compiled is None:
        assert "it runs uncompiled" in recorder.texts[0]
        assert "of the time" in recorder.texts[0]  # only for being slower, never for failing
    else:
        assert torch.allclose(compiled(images)[0], quick(images)[0], atol=1e-4)
        assert "Compiled the frozen part in" in recorder.texts[0]


def test_without_a_compiler_or_where_it_fails_the_frozen_part_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick, _ = cut_backbone(load_backbone("test_resnet", "random", 32), "head")
    images = torch.randn(2, 3, 32, 32)

    def fails(*_: object, **__: object) -> object:
        def run(_: torch.Tensor) -> None:
            raise RuntimeError("InvalidCxxCompiler: broken")

        return run

    def doubles(body: nn.Module, **_: object) -> object:
        return lambda batch: tuple(out * 2 for out in body(batch))

    recorder = Recorder()
    monkeypatch.setenv("CXX", "python3")  # there is one
    monkeypatch.setattr(torch, "compile", fails)
    assert compile_prefix(quick, images, recorder) is None
    assert recorder.texts[-1] == (
        "Compiling the frozen part failed (InvalidCxxCompiler: broken); it runs uncompiled."
    )
    monkeypatch.setattr(torch, "compile", doubles)
    assert compile_prefix(quick, images, recorder) is None
    assert "differ by 1.0e+00; it runs uncompiled" in recorder.texts[-1]
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    assert compile_prefix(quick, images, recorder) is None
    assert recorder.texts[-1] == (
        "There is no C++ compiler, so the frozen part runs uncompiled. "
        "Install g++ to have large extractions compiled."
    )


# the pool: one network for each name

HEAD_ONLY = (Phase(),)
TRAINED = (Phase(train="all"),)


def plan_of(name: str, phases: tuple[Phase, ...] = TRAINED, **fields: object) -> Plan:
    values = {"weights": "random", "resolution": side(name) or 160, **fields}
    return Plan(backbone=name, phases=phases, **values)  # type: ignore[arg-type]


def spoil(backbone: Backbone) -> None:
    """Do to a network what training does."""
    model = backbone.model
    model.to(memory_format=torch.channels_last)
    model.eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def assert_pristine(backbone: Backbone, plan: Plan) -> None:
    expected = load_backbone(plan.backbone, plan.weights, plan.resolution, plan.seed)
    case = (plan.backbone, plan.weights, plan.seed)
    for field in ("name", "rules", "weights", "resolution", "native", "fixed", "facts"):
        assert getattr(backbone, field) == getattr(expected, field), case
    assert backbone.model.training == expected.model.training
    state, wanted = backbone.model.state_dict(), expected.model.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), (*case, name)
        assert state[name].stride() == tensor.stride(), (*case, name)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert head_digest(backbone) == head_digest(expected), case


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_mambaout"])
def test_a_pool_gives_what_loading_gives_whatever_was_done_to_its_network(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    other = load_backbone(name, "random", side(name), seed=7)
    safetensors.torch.save_file(other.model.state_dict(), file)
    pool = BackbonePool("cpu")
    info = pool.info(name)
    assert info == other.facts
    plans = [
        plan_of(name),
        plan_of(name),
        plan_of(name, seed=5),
        plan_of(name, HEAD_ONLY),
        plan_of(name, HEAD_ONLY, seed=5),
        plan_of(name, weights=str(file)),
        plan_of(name, HEAD_ONLY, weights=str(file)),
        plan_of(name),
    ]
    networks = set()
    for plan in plans:
        for give in (pool.load, pool.share):
            backbone = give(plan)
            assert_pristine(backbone, plan)
            networks.add(id(backbone.traced))
            if plan.phases == TRAINED or give == pool.load:
                spoil(backbone)
    assert pool.info(name) is info
    assert len(networks) == 1


def test_a_pool_builds_a_network_of_fixed_resolution_anew_for_another_one() -> None:
    name = "deit_tiny_patch16_224"
    pool = BackbonePool("cpu")
    own = pool.load(plan_of(name, resolution=224))
    assert own.fixed
    spoil(own)
    assert_pristine(
        pool.load(plan_of(name, resolution=64, seed=2)), plan_of(name, resolution=64, seed=2)
    )
    again = pool.share(plan_of(name, HEAD_ONLY, resolution=64))
    assert_pristine(again, plan_of(name, HEAD_ONLY, resolution=64))
    blank = pool.blank(plan_of(name, resolution=224))
    assert (blank.resolution, blank.traced is again.traced) == (224, False)


def test_a_blank_network_has_the_layout_of_a_fresh_one_and_is_not_taken_for_pristine() -> None:
    pool = BackbonePool("cpu")
    plan = plan_of("test_resnet", HEAD_ONLY)
    spoil(pool.load(plan))
    blank = pool.blank(plan)
    fresh = load_backbone("test_resnet", "random", 64)
    strides = [tensor.stride() for tensor in blank.model.state_dict().values()]
    assert strides == [tensor.stride() for tensor in fresh.model.state_dict().values()]
    assert_pristine(pool.share(plan), plan)


def test_plans_that_train_the_head_only_share_a_network_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    state = load_backbone("test_resnet", "random", 64, seed=7).model.state_dict()
    safetensors.torch.save_file(state, file)
    plan = plan_of("test_resnet", HEAD_ONLY, weights=str(file))
    pool = BackbonePool("cpu")
    first = pool.share(plan)
    file.unlink()  # it is not read again
    assert pool.share(plan.model_copy(update={"seed": 4})) is first
    assert pool.read(plan) is first
    assert source_key(plan) == source_key(plan.model_copy(update={"seed": 4}))
    trained = plan_of("test_resnet", weights=str(file))
    assert pool.share(trained) is first
    with pytest.raises(UserError, match="is neither 'pretrained', 'random' nor a file"):
        pool.share(trained)  # the run before may have changed them


def test_a_pool_survives_weights_that_cannot_be_had() -> None:
    pool = BackbonePool("cpu")
    plan = plan_of("test_resnet", HEAD_ONLY)
    pool.share(plan)
    with pytest.raises(UserError, match="is neither"):
        pool.load(plan_of("test_resnet", weights="none.pth"))
    assert_pristine(pool.share(plan), plan)
    with pytest.raises(UserError, match="No backbone is called 'resnet5'"):
        pool.info("resnet5")


def test_a_pool_holds_so_many_networks_and_drops_the_one_used_longest_ago() -> None:
    pool = BackbonePool("cpu", most=2)
    names = ["test_resnet", "test_efficientnet", "test_vit"]
    first, second, _ = (pool.read(plan_of(name)) for name in names)
    assert pool.read(plan_of(names[1])) is second
    assert pool.read(plan_of(names[0])).traced is not first.traced
    assert_pristine(pool.read(plan_of(names[0])), plan_of(names[0]))


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[str]:
    """Return a list that grows with every call of somebody else's function."""
    original, calls = getattr(owner, name), []

    def spy(*args: object, **options: object) -> object:
        calls.append(name)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, spy)
    return calls


@pytest.mark.parametrize("technique", ["linear-probe", "fine-tune-top", "probe-then-fine-tune"])
def test_a_run_builds_and_traces_its_network_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch, technique: str
) -> None:
    from torchvision.models.feature_extraction import NodePathTracer

    built = count_calls(monkeypatch, timm, "create_model")
    traced = count_calls(monkeypatch, NodePathTracer, "trace")
    last = [f"phases.{1 if '-then-' in technique else 0}.epochs=1"]
    overrides = last if technique != "linear-probe" else []
    run = fit_tiny(photos, technique, "out", overrides, CacheOptions())
    assert run.scores["contract"] == "kept"
    assert len(built) == 1
    assert len(traced) == 2  # in train and in eval mode


def test_weights_of_every_rank_are_laid_out() -> None:
    layers = (nn.Linear(4, 4), nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3))
    for layer in layers:
        before = layer.weight.detach().clone()
        use_channels_last(layer)
        assert torch.equal(layer.weight, before), layer
    weight = layers[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_a_network_with_a_three_dimensional_convolution_can_be_frozen() -> None:
    assert check_folding(load_backbone("lambda_resnet26t", "random", 256))


class _Outer(nn.Module):
    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.chain(images),)


def test_a_convolution_whose_weight_is_made_is_not_folded() -> None:
    seen = 0
    for wrap in (parametrizations.weight_norm, parametrizations.spectral_norm, spectral_norm):
        chain = nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)).eval()
        chain[1].running_mean.normal_(0, 0.3)
        prefix = Prefix(fx.symbolic_trace(_Outer(chain)), (torch.Size((8, 14, 14)),))
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            (plain,), (fast,) = prefix(images), fuse_conv_bn(prefix)(images)
        assert torch.allclose(plain, fast, atol=1e-5), wrap
        seen += 1
    assert seen == 3
