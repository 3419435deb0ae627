"""The order of the gallery: transport first, then maps, views, the sphere, and metric learning."""

__all__ = ["Order"]

FIRST = (
    "plan_and_map",
    "bias",
    "gradient_flows",
    "unbalanced",
    "semidiscrete",
    "barycenter",
    "ragged_clouds",
    "soft_ranks",
    "flow_matching",
    "large_cloud",
    "monge_gap",
    "disentanglement",
    "contrastive_views",
    "domain_target",
    "collapsed_embedding",
    "tammes",
    "prototypes",
    "nir",
)


class Order:
    """A sorting key of files ``plot_NAME.py``: by place in the list, and others after it by name."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, file: str) -> tuple[int, str]:
        name = file.removeprefix("plot_").removesuffix(".py")
        return FIRST.index(name) if name in FIRST else len(FIRST), name
