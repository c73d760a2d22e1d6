"""A law of the user's own: the loss falls with size to a floor."""

PARAMETERS = {"E": (0.1, 1.0), "A": (1.0, 30.0), "alpha": (0.1, 0.5)}
COLUMNS = ("N",)
FORMULA = "E + A/N^alpha"


def form(params, row):
    return params["E"] + params["A"] / row["N"] ** params["alpha"]
