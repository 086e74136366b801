# SPDX-License-Identifier: Apache-2.0
"""The models of transformers that have a contrastive loss, tiny and random, and batches for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from parity import peer
from torch import Tensor

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
}
TOKENS: dict[str, Any] = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT = TOWER | TOKENS | {"max_position_embeddings": 12}
VISION = TOWER | {"image_size": 8, "patch_size": 4}
BERT = TEXT | {"type_vocab_size": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EFFICIENT_NET = {
    "image_size": 16,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 8],
    "out_channels": [8, 16],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 16,
    "drop_connect_rate": 0.0,
}
SWIN = {
    "spec_size": 32,
    "num_mel_bins": 8,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 4,
    "hidden_size": 16,
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "num_hidden_layers": 2,
    "hidden_dropout_prob": 0.0,
}
MODERNBERT = {
    "model_type": "modernbert",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    **TOKENS,
    **{"cls_token_id": 1, "sep_token_id": 2},
}
CLVP = TOWER | TOKENS | {"use_rotary_embedding": False, "projection_dim": 8, "dropout": 0.0, "attention_dropout": 0.0}
PE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
DAC = {"downsampling_ratios": [2, 4], "encoder_hidden_size": 8, "codebook_dim": 4, "n_codebooks": 1}
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
TIMM = {"architecture": "vit_tiny_patch16_224", "model_args": VIT, "num_classes": 8, "do_pooling": True}


class Model(NamedTuple):
    """How to make a model, from its configuration, and what its forward takes of n instances."""

    name: str
    config: Callable[[], Any]
    inputs: Callable[[int, torch.Generator], dict[str, Tensor]]

    @property
    def family(self) -> str:
        """The folder of the model in transformers."""
        return str(self.class_of().__module__).rpartition(".modeling_")[2]

    def class_of(self) -> Any:
        import transformers

        return getattr(transformers, self.name)

    def make(self, dtype: torch.dtype = torch.float64) -> Any:
        torch.manual_seed(0)
        model = self.class_of()(self.config()).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.numel() == 1:  # scales and biases that begin with 0 say little
                    parameter += 0.3 if "bias" in name else 0.2
        return model

    def batch(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> dict[str, Tensor]:
        inputs = self.inputs(n, torch.Generator().manual_seed(seed))
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def config(name: str, **options: Any) -> Callable[[], Any]:
    """A configuration of transformers, made when it is wanted."""

    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**options)

    return make


def tokens(n: int, g: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(3, 40, (n, 6), generator=g)
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def images(n: int, g: torch.Generator, size: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(n, 3, size, size, generator=g)}


def pairs(size: int = 8) -> Callable[[int, torch.Generator], dict[str, Tensor]]:
    return lambda n, g: tokens(n, g) | images(n, g, size)


def clap(n: int, g: torch.Generator) -> dict[str, Tensor]:
    sound = torch.randn(n, 1, 32, 8, generator=g)
    return tokens(n, g) | {"input_features": sound, "is_longer": torch.zeros(n, 1, dtype=torch.bool)}


def clvp(n: int, g: torch.Generator) -> dict[str, Tensor]:
    return tokens(n, g) | {"input_features": torch.randn(n, 8, 10, generator=g)}


def patches(n: int, g: torch.Generator) -> dict[str, Tensor]:
    shapes = torch.tensor([[2, 2]]).repeat(n, 1)
    mask = torch.ones(n, 4, dtype=torch.int64)
    more = {"pixel_attention_mask": mask, "spatial_shapes": shapes}
    return tokens(n, g) | {"pixel_values": torch.randn(n, 4, 48, generator=g)} | more


def waves(n: int, g: torch.Generator, samples: int = 64) -> dict[str, Tensor]:
    return {"input_values": torch.randn(n, 1, samples, generator=g)}


def frames(n: int, g: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values_videos": torch.randn(n, 2, 3, 32, 32, generator=g)}


def masked(n: int, g: torch.Generator) -> dict[str, Tensor]:
    """FLAVA's: labels for its other losses, and pairs that do not belong together."""
    text, labels = tokens(n, g), torch.full((n, 6), -100)
    labels[:, 2] = text["input_ids"][:, 2]
    covered = torch.zeros(n, 2, 2, dtype=torch.bool)
    covered[:, 0, 0] = True
    more = {"mim_labels": torch.randint(0, 20, (n, 2, 2), generator=g), "bool_masked_pos": covered}
    matched = torch.ones(n, dtype=torch.int64)
    matched[1:2] = 0
    text |= {"input_ids_masked": text["input_ids"], "mlm_labels": labels, "itm_labels": matched}
    return text | images(n, g) | more


def clips(n: int, g: torch.Generator) -> dict[str, Tensor]:
    return tokens(n, g) | {"pixel_values": torch.randn(n, 2, 3, 8, 8, generator=g)}


def attacked(n: int, g: torch.Generator) -> dict[str, Tensor]:
    """RoCBert's: a text, an attack on it, and the text that was meant."""
    parts = {prefix: tokens(n, g) for prefix in ("", "attack_", "labels_")}
    return {prefix + name: x for prefix, part in parts.items() for name, x in part.items()}


PROJECTED = {"projection_dim": 8}
MODELS = (
    Model("CLIPModel", config("CLIPConfig", text_config=TEXT, vision_config=VISION, **PROJECTED), pairs()),
    Model(
        "AltCLIPModel",
        config("AltCLIPConfig", text_config=BERT | {"project_dim": 16}, vision_config=VISION, **PROJECTED),
        pairs(),
    ),
    Model(
        "ChineseCLIPModel", config("ChineseCLIPConfig", text_config=BERT, vision_config=VISION, **PROJECTED), pairs()
    ),
    Model(
        "CLIPSegModel",
        config("CLIPSegConfig", text_config=TEXT, vision_config=VISION, extract_layers=[0, 1], **PROJECTED),
        pairs(),
    ),
    Model("MetaClip2Model", config("MetaClip2Config", text_config=TEXT, vision_config=VISION, **PROJECTED), pairs()),
    Model(
        "GroupViTModel",
        config(
            "GroupViTConfig",
            text_config=TEXT,
            vision_config=VISION
            | {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4], "hidden_size": 16},
            projection_intermediate_dim=16,
            **PROJECTED,
        ),
        pairs(),
    ),
    Model("OwlViTModel", config("OwlViTConfig", text_config=TEXT, vision_config=VISION, **PROJECTED), pairs()),
    Model("Owlv2Model", config("Owlv2Config", text_config=TEXT, vision_config=VISION, **PROJECTED), pairs()),
    Model(
        "VisionTextDualEncoderModel",
        config(
            "VisionTextDualEncoderConfig",
            text_config=BERT | {"model_type": "bert"},
            vision_config=VISION | {"model_type": "clip_vision_model"},
            **PROJECTED,
        ),
        pairs(),
    ),
    Model("BlipModel", config("BlipConfig", text_config=BERT, vision_config=VISION, **PROJECTED), pairs()),
    Model(
        "ClvpModelForConditionalGeneration",
        config(
            "ClvpConfig",
            text_config=CLVP,
            speech_config=CLVP,
            decoder_config=TOWER
            | TOKENS
            | {"max_position_embeddings": 40, "max_text_tokens": 20, "feature_size": 8, "num_mel_attn_blocks": 1}
            | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0, "decoder_fixing_codes": [3, 4, 4, 5]},
            **PROJECTED,
        ),
        clvp,
    ),
    Model(
        "AlignModel", config("AlignConfig", text_config=BERT, vision_config=EFFICIENT_NET, projection_dim=16), pairs(16)
    ),
    Model(
        "Tipsv2Model",
        config("Tipsv2Config", text_config=TEXT, vision_config=VISION, temperature_init_value=0.1),
        pairs(),
    ),
    Model("SiglipModel", config("SiglipConfig", text_config=TEXT, vision_config=VISION), pairs()),
    Model(
        "Siglip2Model",
        config("Siglip2Config", text_config=TEXT, vision_config=TOWER | {"patch_size": 4, "num_patches": 4}),
        patches,
    ),
    Model(
        "ClapModel",
        config("ClapConfig", text_config=BERT | {"projection_dim": 8}, audio_config=SWIN | PROJECTED, **PROJECTED),
        clap,
    ),
    Model(
        "BridgeTowerForContrastiveLearning",
        config(
            "BridgeTowerConfig",
            text_config=BERT | {"hidden_size": 64},
            vision_config={"hidden_size": 64, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4},
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            contrastive_hidden_size=8,
            logit_scale_init_value=2.6592,  # which the model asks for and the configuration lacks
        ),
        pairs(),
    ),
    Model(
        "PeAudioModel",
        config("PeAudioConfig", text_config=MODERNBERT, audio_config=PE | {"dac_config": DAC}),
        lambda n, g: tokens(n, g) | waves(n, g),
    ),
    Model(
        "PeVideoModel",
        config("PeVideoConfig", text_config=MODERNBERT, video_config=PE | {"vision_config": TIMM}),
        lambda n, g: tokens(n, g) | frames(n, g),
    ),
    Model(
        "PeAudioVideoModel",
        config(
            "PeAudioVideoConfig",
            text_config=MODERNBERT,
            audio_video_config=PE
            | {
                "audio_config": PE | {"dac_config": DAC, "model_type": "pe_audio_encoder"},
                "video_config": PE | {"vision_config": TIMM, "model_type": "pe_video_encoder"},
            },
        ),
        lambda n, g: tokens(n, g) | waves(n, g) | frames(n, g),
    ),
    Model(
        "FlavaForPreTraining",
        config(
            "FlavaConfig",
            text_config=BERT,
            image_config=VISION | {"vocab_size": 20, "mask_token": True},
            multimodal_config=TOWER,
            image_codebook_config={"num_groups": 1, "hidden_size": 8, "num_blocks_per_group": 1, "vocab_size": 20},
            hidden_size=16,
            projection_dim=8,
            init_codebook=False,
        ),
        masked,
    ),
    Model(
        "RoCBertForPreTraining",
        config(
            "RoCBertConfig",
            **BERT,
            pronunciation_embed_dim=8,
            pronunciation_vocab_size=40,
            shape_embed_dim=8,
            shape_vocab_size=40,
        ),
        attacked,
    ),
)
OWN_CODE = (
    Model(
        "PeAudioFrameLevelModel",
        config("PeAudioConfig", text_config=MODERNBERT, audio_config=PE | {"dac_config": DAC}),
        lambda n, g: tokens(n, g) | waves(n, g, 8 * n),  # as many frames as instances, or the library fails
    ),
    Model(
        "XCLIPModel",
        config(
            "XCLIPConfig",
            text_config=TEXT,
            vision_config=VISION
            | {"num_frames": 2, "mit_hidden_size": 8, "mit_intermediate_size": 8, "mit_num_attention_heads": 2},
            prompt_num_attention_heads=2,
            **PROJECTED,
        ),
        clips,
    ),
    Model(
        "VideoPrismClipModel",
        config(
            "VideoPrismConfig",
            text_config=TEXT | {"hidden_act": "relu"},
            vision_config=TOWER
            | {"image_size": 8, "num_frames": 2, "tubelet_size": [1, 4, 4], "num_spatial_layers": 1}
            | {"num_temporal_layers": 1, "num_auxiliary_layers": 1},
        ),
        lambda n, g: tokens(n, g) | {"pixel_values_videos": torch.randn(n, 2, 3, 8, 8, generator=g)},
    ),
)
NAMED = {model.name: model for model in (*MODELS, *OWN_CODE)}


class Step(NamedTuple):
    """What a step of a model gives: its output, and the gradient of every parameter."""

    output: Any
    gradients: dict[str, Tensor | None]


def forward(model: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    """The output of a model that is asked for its loss."""
    asked = {} if "attack_input_ids" in batch else {"return_loss": True}
    return model(**batch, **asked, **options)


def step(model: Any, batch: dict[str, Tensor]) -> Step:
    torch.manual_seed(0)  # for its dropout
    output = forward(model, batch)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return Step(output, gradients)


def assert_same_gradients(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], tolerance: float) -> None:
    """Of every parameter, relative to its largest entry; one without a gradient has none in either."""
    assert {name for name, g in found.items() if g is None} == {name for name, g in wanted.items() if g is None}
    largest = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    assert largest > 0
    for name, right in wanted.items():
        if right is not None:
            scale = max(float(right.abs().max()), 1e-3 * largest)  # some are 0 but for rounding
            error = float((found[name] - right).abs().max())
            assert error <= tolerance * scale, f"{name}: {error:.2g} off, entries up to {scale:.2g}"


@contextlib.contextmanager
def patched(*families: str, gather: bool = False) -> Iterator[None]:
    from pycl.compat import transformers

    transformers.patch(*families, gather=gather)
    try:
        yield
    finally:
        transformers.unpatch()


def installed() -> Any:
    """transformers; the test is skipped where it is not installed. It says nothing about its tiny configurations."""
    library = peer("transformers")
    library.logging.set_verbosity(50)
    return library


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Falling back is an error."""
    monkeypatch.setenv("PYCL_STRICT", "1")
