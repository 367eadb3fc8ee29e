"""A public op and its two implementations: arguments are bound once, checked once, and one of the two is picked once.

`reference_op` makes an op of plain PyTorch code, `op` makes the public one of Triton code. The functions that they
decorate have the op's whole signature, `impl` and `check_values` too, and get arguments that are bound and checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from .arguments import require_reference, runs_triton
from .autograd import uncompiled

Op = TypeVar("Op", bound=Callable[..., Any])


def reference_op(check: Callable[..., None], *, may_lack: tuple[str, ...] = ()) -> Callable[[Op], Op]:
    """For plain PyTorch: `impl` is "auto" or "reference".

    check: takes the op's arguments by name, but for `impl`. may_lack: arguments without a default that count as None
    where they are left out, as another one may stand for them; the check says where one is missed.
    """

    def decorate(function: Op) -> Op:
        bind = _binder(function, may_lack)

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            values = bind(arguments, options)
            require_reference(function.__name__, values["impl"])
            _run_check(check, values)
            return function(**values)

        run.check, run.implementation = check, function  # type: ignore[attr-defined]
        return cast(Op, run)

    return decorate


def op(
    reference: Callable[..., Any], *, multiplies: bool = False, may_lack: tuple[str, ...] = ()
) -> Callable[[Op], Op]:
    """For Triton; where that is not what runs (`runs_triton`), the implementation of `reference` does.

    multiplies: the op has matrix products. may_lack: as for `reference_op`. Both implementations refuse the same input
    in the same words.
    """
    check, in_pytorch = reference.check, reference.implementation  # type: ignore[attr-defined]

    def decorate(function: Op) -> Op:
        bind = _binder(function, may_lack)
        first = next(iter(inspect.signature(function).parameters))

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            values = bind(arguments, options)
            in_triton = runs_triton(function.__name__, values["impl"], values[first], multiplies=multiplies)
            _run_check(check, values)
            return (function if in_triton else in_pytorch)(**values)

        return cast(Op, uncompiled(run))

    return decorate


def _run_check(check: Callable[..., None], values: Mapping[str, Any]) -> None:
    check(**{name: value for name, value in values.items() if name != "impl"})


def _binder(
    function: Callable[..., Any], may_lack: tuple[str, ...] = ()
) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """`inspect.Signature.bind` with defaults, at a tenth of its time: an op is called at every step of a decode."""
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    names = signature.parameters.keys()
    positional = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    defaults |= dict.fromkeys(may_lack)

    def bind(arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        given = dict(zip(positional, arguments, strict=False))
        values = {**defaults, **given, **options}
        if len(arguments) > len(positional) or values.keys() != names or not given.keys().isdisjoint(options):
            signature.bind(*arguments, **options)  # raises the TypeError that says what is wrong
        return values

    return bind
