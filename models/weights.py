"""How the weights of every network here begin."""

from torch import nn


def he(net: nn.Module, linear_std: float | None = None) -> None:
    """Draw the weights of every convolution and linear layer from N(0, 2 / fan_in), and set their biases to 0.

    Linear layers take N(0, linear_std^2) where `linear_std` is given. Source: He et al. 2015, equation 10.
    Fan-in, not fan-out: a filter then has norm sqrt(2) whatever its layer's widths, so growing a neighbour leaves the
    moment at which the filter is selected as it was.
    """
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in net.modules():
        if len(module._modules) and callable(reset := getattr(module, "reset_parameters", None)):
            reset()  # a block that begins in its own way
