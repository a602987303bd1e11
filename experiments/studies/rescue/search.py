"""The wider search behind `configs.optimizers`: more settings, more learning rates."""

from configs.optimizers import Arm

# Wide enough that a choice at the edge of a list is no better than one inside it; from
# a scale of 1e8, SGD wants a rate 1e9 times smaller, and Adam one 1e5 times larger.
_SGD_RATES = (
    *(1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
    *(0.01, 0.03, 0.1, 0.3, 1.0),
)
_ADAM_RATES = (
    *(1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0),
    *(10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7),
)
_LAMB_RATES = (
    *(1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01),
    *(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0),
)
_LARS_RATES = (
    *(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)


def _arm(label: str, name: str, rates: tuple[float, ...], **settings) -> Arm:
    return {
        "label": label,
        "name": name,
        "settings": settings,
        "learning_rates": rates,
    }


SEARCHED: dict[str, Arm] = {
    "sgd": _arm("SGD with momentum", "sgd", _SGD_RATES, momentum=0.9),
    "sgd_nesterov": _arm(
        "SGD, Nesterov", "sgd", _SGD_RATES, momentum=0.9, nesterov=True
    ),
    "adam": _arm("Adam", "adam", _ADAM_RATES),
    "adam_nesterov": _arm("Adam, Nesterov", "adam", _ADAM_RATES, nesterov=True),
    "lamb": _arm("LAMB", "lamb", _LAMB_RATES),
    "lamb_decay": _arm("LAMB, decay 0.01", "lamb", _LAMB_RATES, weight_decay=0.01),
    "optax_lars": _arm("optax.lars", "optax_lars", _LARS_RATES),
    "optax_lars_nesterov": _arm(
        "optax.lars, Nesterov", "optax_lars", _LARS_RATES, nesterov=True
    ),
    "optax_lars_decay": _arm(
        "optax.lars, decay 5e-4", "optax_lars", _LARS_RATES, weight_decay=5e-4
    ),
    "optax_lars_decay_nesterov": _arm(
        "optax.lars, decay 5e-4, Nesterov",
        "optax_lars",
        _LARS_RATES,
        weight_decay=5e-4,
        nesterov=True,
    ),
    "paper": _arm("LARS (the paper)", "lars", _LARS_RATES, weight_decay=5e-4),
    "paper_no_decay": _arm("LARS (the paper), no decay", "lars", _LARS_RATES),
    "recommended_decay": _arm(
        "recommended, decay 5e-4",
        "lars",
        _LARS_RATES,
        weight_decay=5e-4,
        layer="module",
    ),
    "recommended": _arm("recommended", "lars", _LARS_RATES, layer="module"),
    "recommended_nesterov": _arm(
        "recommended, Nesterov", "lars", _LARS_RATES, layer="module", nesterov=True
    ),
}
