"""A static network as a model of timm's: for training scripts, heads and tools that take timm's models.

    model = as_timm(load_bundle("small").net)                                     over the same weights
    model = timm.create_model("routespace", bundle="small", pretrained=True)      once this module is imported
    maps = timm.create_model("routespace", bundle="small", pretrained=True, features_only=True)

Keys of the state dict are those of TaskNet: `backbone.*`, `head.weight` and `head.bias`.

Shape legend: B images · K classes · C channels · H, W pixels, or of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from timm.models import register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from routespace.checked import checked
from routespace.deploy.bundle import load_bundle
from routespace.errors import SpecError
from routespace.nn.heads.base import Maps
from routespace.nn.heads.classify import Classifier
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import AnyNet, TaskNet, as_task_net
from routespace.preprocess import Preprocess, load_preprocess

__all__ = ["TimmModel", "as_timm", "routespace"]

PREVIOUS_LAYER = 99999  # timm's word for "of the layer before"
PICTURE_CHANNELS = (1, 3, 4)  # of which ImageNet's mean and deviation are known
OF_CREATE_MODEL = ("pretrained_cfg_overlay", "cache_dir")  # of which the latter has nothing to keep
Pool = Literal["avg", ""]


class TimmModel(nn.Module):
    """A static network with the attributes and methods that timm's models have; made by `as_timm`.

    Args:
        backbone: a static one.
        head: (B, C) → (B, K); `nn.Identity` for none.
        num_classes: K, or 0.
        cfg: what timm calls a model's `pretrained_cfg`.

    Attributes:
        num_classes, num_features, head_hidden_size, in_chans, feature_info, pretrained_cfg, default_cfg: timm's.
    """

    def __init__(self, backbone: RouteNet, head: nn.Module, num_classes: int, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone, self.head, self.num_classes = backbone, head, num_classes
        self.global_pool: Pool = "avg"
        self.rates = backbone.architecture.output_rates
        spec = backbone.spec
        self.in_chans = spec.in_channels
        self.num_features = self.head_hidden_size = spec.width(self.rates[-1])
        self.feature_info = [
            {"num_chs": spec.width(rate), "reduction": rate, "module": f"backbone.outputs.r{rate:02d}"}
            for rate in self.rates
        ]
        self.pretrained_cfg = self.default_cfg = dict(cfg)
        self.training = backbone.training

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) → the coarsest map (B, C, h, w)."""
        coarsest: Tensor = self.backbone(x).maps[self.rates[-1]]
        return coarsest

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The coarsest map → logits (B, K), or what the classifier sees (B, C)."""
        pooled = x.flatten(2).mean(2) if self.global_pool else x
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) → logits (B, K); without classes the mean of the coarsest map (B, C)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The output maps, fine to coarse; arguments and results are timm's.

        Args:
            x: (B, in_chans, H, W).
            indices: which maps; the last so many, or all.
            norm, stop_early: of no effect: the maps are normalised, and the backbone runs as a whole.
            output_fmt: NCHW alone.
            intermediates_only: leave out the coarsest map in front.

        Raises:
            SpecError: another format.
        """
        if output_fmt != "NCHW":
            raise SpecError(f"output_fmt: {output_fmt!r:.40} is not known here; give NCHW")
        wanted = indices if indices is None or isinstance(indices, int) else list(indices)
        taken, _ = feature_take_indices(len(self.rates), wanted)
        found = self.backbone(x).maps
        maps = [found[self.rates[index]] for index in taken]
        return maps if intermediates_only else (found[self.rates[-1]], maps)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """Give the model a new last layer, or none.

        Args:
            num_classes: K; 0 for none.
            global_pool: `avg`, or an empty string to leave the map as it is, which asks for 0 classes.

        Raises:
            SpecError: classes on a map that is not pooled.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("avg", "") or (num_classes and not pool):
            raise SpecError(
                f"global_pool: {pool!r:.40} with {num_classes} classes; give 'avg', or '' with 0 classes"
            )
        self.num_classes, self.global_pool = num_classes, pool
        like = next(self.backbone.parameters())
        head = _classifier(self.num_features, num_classes)
        self.head = head.to(like.device, like.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """`RouteNet.set_grad_checkpointing` of the backbone."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside norms and biases: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layer of each parameter, by its name, for rates of learning that fall towards the stem.

        Args:
            coarse: of no effect: a layer is a column of the grid, whatever lies in it.
        """
        blocks = [(r"^backbone\.edges\.l(\d+)", None), (r"^backbone\.outputs", (PREVIOUS_LAYER,))]
        return {"stem": r"^backbone\.stem", "blocks": blocks}


def _classifier(features: int, classes: int) -> nn.Module:
    """(B, features) → (B, classes), as a new classifier begins."""
    return _linear(Classifier(features, classes, rate=0)) if classes else nn.Identity()


def _linear(head: Classifier) -> nn.Linear:
    """A classifier's layer alone, over the same weights."""
    classes, features = head.weight.shape
    linear = nn.Linear(features, classes, device="meta")
    linear.weight, linear.bias = head.weight, head.bias
    return linear


@checked
def as_timm(net: AnyNet, preprocess: Preprocess | None = None, classes: Sequence[str] = ()) -> TimmModel:
    """A static network as a model of timm's, over the same weights.

    Args:
        net: a classifier, or a network without a head, whose maps are its features.
        preprocess: how pictures go in, for `timm.data.resolve_model_data_config`; left out, as ImageNet's do.
        classes: names in output order.

    Raises:
        SpecError: a network with gates, whose skipped tokens timm's methods do not know, or with another head.
    """
    task_net = as_task_net(unwrap(net, wanted=(TaskNet, RouteNet)))
    old, spec = task_net.head, task_net.spec
    if not task_net.architecture.is_static:
        raise SpecError(
            "net: it has gates, which timm's methods do not know; extract a static part, or as_module()"
        )
    if not isinstance(old, Classifier | Maps):
        raise SpecError(f"net: its head is a {type(old).__name__}; give a classifier, or the backbone alone")
    head = _linear(old) if isinstance(old, Classifier) else nn.Identity()
    count = old.weight.shape[0] if isinstance(old, Classifier) else 0
    if preprocess is None and spec.in_channels in PICTURE_CHANNELS:
        preprocess = Preprocess.parse({"size": spec.image_size, "channels": spec.in_channels}, name="preprocess")
    cfg = {
        "input_size": (spec.in_channels, *(spec.image_size if preprocess is None else preprocess.size)),
        "num_classes": count,
        "fixed_input_size": False,
        "first_conv": "backbone.stem.proj",
        "classifier": "head",
        "label_names": list(classes) or None,
    }
    if preprocess is not None:
        cfg |= preprocess.model_dump(include={"mean", "std", "crop_pct", "interpolation"})
    return TimmModel(task_net.backbone, head.train(task_net.training), int(count), cfg)


@register_model
def routespace(
    pretrained: bool = False,
    *,
    bundle: str | Path,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: Pool | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **timms: Any,
) -> nn.Module:
    """What `timm.create_model("routespace", bundle=…)` makes of a bundle's folder.

    Args:
        pretrained: with the bundle's weights; else the same network with new ones.
        bundle: of a static network.
        num_classes: another number of classes, with a new last layer; 0 for none.
        in_chans: channels of the images, which the bundle's network must have.
        global_pool: `avg`, or an empty string to leave the map as it is, with 0 classes.
        features_only: timm's `FeatureGetterNet`, images → a list of the output maps, fine to coarse.
        out_indices: of the maps, with `features_only`; left out, all.
        timms: what `create_model` itself adds.

    Raises:
        BundleError: the folder is no bundle.
        SpecError: a network that has gates, other image channels, or an option that is not known.
    """
    asked = [name for name, value in timms.items() if value is not None and name not in OF_CREATE_MODEL]
    if asked:
        raise SpecError(f"{', '.join(asked)}: not known for a bundle's network; leave it out")
    net, fed = load_bundle(bundle).net, load_preprocess(bundle)
    if in_chans not in (None, net.spec.in_channels):
        raise SpecError(
            f"in_chans: {in_chans}, but the network in {bundle} reads {net.spec.in_channels}; leave it out"
        )
    if not pretrained:
        net.backbone.load_state_dict(RouteNet(net.architecture).state_dict())
    model = as_timm(net, *(fed or ()))
    model.pretrained_cfg.update(timms.get("pretrained_cfg_overlay") or {})
    if not pretrained or num_classes is not None or global_pool is not None:
        model.reset_classifier(model.num_classes if num_classes is None else num_classes, global_pool)
    if not features_only:
        return model
    every = tuple(range(len(model.rates)))
    return FeatureGetterNet(model, out_indices if isinstance(out_indices, int) else tuple(out_indices or every))
