# SPDX-License-Identifier: Apache-2.0
"""The models of transformers that have a contrastive loss."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """Models of one file, ``transformers.models.<name>.modeling_<name>``.

    ``own_code`` are models whose loss is no function of products of two sets of embeddings, and why. ``asks`` is the
    argument of the forward that asks for the loss.
    """

    models: tuple[str, ...]
    own_code: tuple[tuple[str, str], ...] = ()
    asks: str = "return_loss"

    @property
    def classes(self) -> tuple[str, ...]:
        return *self.models, *(name for name, _ in self.own_code)


FAMILIES = {
    "align": Family(("AlignModel",)),
    "altclip": Family(("AltCLIPModel",)),
    "blip": Family(("BlipModel",)),
    "bridgetower": Family(("BridgeTowerForContrastiveLearning",)),
    "chinese_clip": Family(("ChineseCLIPModel",)),
    "clap": Family(("ClapModel",)),
    "clip": Family(("CLIPModel",)),
    "clipseg": Family(("CLIPSegModel",)),
    "clvp": Family(("ClvpModelForConditionalGeneration",)),
    "flava": Family(("FlavaForPreTraining",)),
    "groupvit": Family(("GroupViTModel",)),
    "metaclip_2": Family(("MetaClip2Model",)),
    "owlv2": Family(("Owlv2Model",)),
    "owlvit": Family(("OwlViTModel",)),
    "pe_audio": Family(("PeAudioModel",), (("PeAudioFrameLevelModel", "a matrix of logits for every frame"),)),
    "pe_audio_video": Family(("PeAudioVideoModel",)),
    "pe_video": Family(("PeVideoModel",)),
    "roc_bert": Family(("RoCBertForPreTraining",), asks="attack_input_ids"),
    "siglip": Family(("SiglipModel",)),
    "siglip2": Family(("Siglip2Model",)),
    "tipsv2": Family(("Tipsv2Model",)),
    "videoprism": Family((), (("VideoPrismClipModel", "its scores are normalised over the batch"),)),
    "vision_text_dual_encoder": Family(("VisionTextDualEncoderModel",)),
    "x_clip": Family((), (("XCLIPModel", "each video has text embeddings of its own"),)),
}


def module_of(family: str) -> str:
    return f"transformers.models.{family}.modeling_{family}"
