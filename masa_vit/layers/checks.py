"""Checks of the arguments of `share_linears`: every error names the value and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from masa_vit.layers.bank import check_num_atoms
from masa_vit.layers.coefficients import CoefficientSource
from masa_vit.layers.dictionaries import Dictionary, parse_bank_name
from masa_vit.layers.linear import Names, Repeat, SharedLinear, projection_sizes

COEFFICIENT_KINDS = ('direct', 'channel', 'mlp', 'frozen')


def projection_shapes(
    blocks: Sequence[nn.Module],
    layout: Mapping[str, Names],
    repeats: Mapping[str, Repeat] | None = None,
    allow_repeated_names: bool = False,
) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of the stored weight of every projection.

    Args:
        blocks: As `share_linears`.
        layout: As `share_linears`.
        repeats: As `share_linears`.
        allow_repeated_names: Whether a layer may name a projection twice: tied weights.

    Raises:
        ValueError: If a block lacks a linear layer of the layout, or other shapes than the others;
            for no blocks, names of projections that are doubled or taken, or repeated heads that do
            not divide the rows.
    """
    _check_names(blocks, layout, allow_repeated_names)
    repeats = repeats or {}
    shapes: dict[str, tuple[int, int]] = {}
    for index, block in enumerate(blocks):
        for path, names in layout.items():
            try:
                linear = block.get_submodule(path)
            except AttributeError as error:
                raise ValueError(
                    f'block {index} ({type(block).__name__}) has no {path!r}: {error}'
                ) from None
            # a subclass with another forward pass (LoRA, quantized weights) would lose it
            if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
                raise ValueError(
                    f'block {index}: {path!r} is a {type(linear).__name__}, expected a plain Linear '
                    '(merge LoRA first)'
                )
            if not isinstance(linear._parameters.get('weight'), nn.Parameter):
                raise ValueError(
                    f'block {index}: the weight of {path!r} is not a parameter: remove its '
                    'parametrization first (torch.nn.utils.parametrize.remove_parametrizations)'
                )
            for name, rows in zip(names, projection_sizes(names, linear.out_features), strict=True):
                times, of_head = repeats.get(name, (1, 1))
                if rows % (times * of_head):
                    raise ValueError(
                        f'projection {name!r} has {rows} rows, expected a multiple of '
                        f'{times * of_head}: heads of {of_head} rows, each used {times} times'
                    )
                shape = (rows // times, linear.in_features)
                if shapes.setdefault(name, shape) != shape:
                    raise ValueError(
                        f'projection {name!r} is {shape} in block {index} and {shapes[name]} before '
                        'it: only layers of equal shape can share atoms.'
                    )
    return shapes


def _check_names(
    blocks: Sequence[nn.Module], layout: Mapping[str, Names], allow_repeated: bool
) -> None:
    if not len(blocks):
        raise ValueError('blocks is empty: expected at least one block')
    stacked = [dict.fromkeys(names) if allow_repeated else names for names in layout.values()]
    known = [name for names in stacked for name in names]
    if not known or not all(map(len, layout.values())) or len(set(known)) < len(known):
        raise ValueError(
            f'layout={dict(layout)!r} is not valid, expected path of a linear layer -> the projections '
            "that it stacks, each named once, as {'attn.qkv': 'qkv', 'attn.proj': 'o'} or "
            "{'gate_proj': ['gate']}; the letters of a string are a projection each"
        )
    taken = CoefficientSource({}), nn.ModuleDict()
    bad = [n for n in known if not n.isidentifier() or any(hasattr(of, n) for of in taken)]
    if bad:
        raise ValueError(
            f'projections cannot be called {bad}: expected identifiers that are not in use'
        )


def check_groups(groups: Iterable[Iterable[int]], num_layers: int) -> list[list[int]]:
    """Return groups given by hand in order; ValueError if they are not a partition of the layers.

    Args:
        groups: Lists of layers, in any order.
        num_layers: L.
    """
    try:
        lists = sorted(sorted(group) for group in groups)
    except TypeError:
        lists = []
    layers = sorted(layer for group in lists for layer in group)
    is_whole = layers == [*range(num_layers)] and all(type(layer) is int for layer in layers)
    if not is_whole or not all(lists):
        raise ValueError(
            f'groups={groups!r}: expected lists of layers, none empty, with each of the layers 0 to '
            f'{num_layers - 1} in exactly one of them'
        )
    return lists


def check_dictionaries(
    dictionaries: Mapping[str, Sequence[str] | Dictionary],
    num_atoms: int,
    num_layers: int,
    known: Sequence[str],
) -> dict[str, Dictionary]:
    """Complete the dictionaries of a stack, and check that each layer has one of each kind.

    Args:
        dictionaries: Name -> `Dictionary`, or only its projections: then it serves all layers.
        num_atoms: S of dictionaries without `num_atoms`.
        num_layers: L.
        known: The projections that there are.

    Raises:
        ValueError: For unknown or doubled projections, layers that are left out or named twice, a
            number of atoms out of range.
    """
    full = {
        key: value
        if isinstance(value, Dictionary)
        else Dictionary(tuple(value), range(num_layers), num_atoms)
        for key, value in dictionaries.items()
    }
    drawn: dict[str, list[int]] = {}
    doubled = False
    for dictionary in full.values():
        doubled |= not dictionary.names or len(set(dictionary.names)) < len(dictionary.names)
        for name in dictionary.names:
            drawn.setdefault(name, []).extend(dictionary.layers)
    whole = all(sorted(layers) == [*range(num_layers)] for layers in drawn.values())
    if doubled or not set(drawn) <= set(known) or not whole:
        raise ValueError(
            f'dictionaries={dict(dictionaries)!r} is not valid, expected each to name different '
            f'projections out of {list(known)}, and every layer out of {num_layers} to draw on one '
            'dictionary for each projection'
        )
    for key, dictionary in full.items():
        if (named := parse_bank_name(key)[1]) not in (None, tuple(sorted(dictionary.layers))):
            raise ValueError(
                f'dictionary {key!r}: a name that ends in numbers is that of a group of layers, here '
                f'{named}; choose a name without'
            )
    return {key: _check_atoms(key, value) for key, value in full.items()}


def _check_atoms(key: str, dictionary: Dictionary) -> Dictionary:
    num_atoms = check_num_atoms(dictionary.num_atoms)
    weights = len(dictionary.layers) * len(dictionary.names)
    if num_atoms > weights:
        what = 'layers' if len(dictionary.names) == 1 else 'weights'
        raise ValueError(
            f'num_atoms={num_atoms} is larger than the number of {what}, {weights}, that share '
            f'dictionary {key!r}: nothing would be saved. Choose num_atoms <= {weights} (a third of '
            'them is the usual choice).'
        )
    return dictionary._replace(num_atoms=num_atoms)


def check_shapes(
    dictionaries: Mapping[str, Dictionary], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Raise ValueError unless the projections of each dictionary have one shape."""
    for key, (names, _, _) in dictionaries.items():
        for name in names:
            if shapes[name] != shapes[names[0]]:
                raise ValueError(
                    f'projections {names[0]!r} {shapes[names[0]]} and {name!r} {shapes[name]} have '
                    f'unequal shapes and cannot draw on one dictionary {key!r}: give each its own'
                )


def check_parent(blocks: Sequence[nn.Module], layout: Mapping[str, Names]) -> str:
    """Return the path of the module around the linear layers; ValueError if it cannot own them."""
    parents = sorted({path.rpartition('.')[0] for path in layout})
    if len(parents) > 1:
        raise ValueError(f'the layers of layout lie in {parents}: share those of one module a call')
    used = {name for m in blocks[0].modules() if isinstance(m, SharedLinear) for name in m.bank_of}
    if taken := used & {name for names in layout.values() for name in names}:
        raise ValueError(f'projections {sorted(taken)} share already: choose other names')
    for index, block in enumerate(blocks):
        if hasattr(block.get_submodule(parents[0]), 'coef'):
            raise ValueError(
                f'{parents[0] or "the block"!r} in block {index} has a `coef` already, where its '
                'coefficients would go: share all linear layers of a module in one call'
            )
    return parents[0]


def check_ranks(
    ranks: Mapping[str, Sequence[int]],
    known: Sequence[str],
    shapes: Mapping[str, tuple[int, int]],
    depth: int,
) -> dict[str, Sequence[int]]:
    """Complete the ranks of ``U V``: every known projection, every layer."""
    if unknown := set(ranks) - set(known):
        raise ValueError(
            f'residual ranks are given for {sorted(unknown)}, expected projections out of {list(known)}'
        )
    for name, given in ranks.items():
        most = min(shapes[name])
        if len(given) != depth or not all(
            type(rank) is int and 0 <= rank <= most for rank in given
        ):
            raise ValueError(
                f'residual ranks of {name!r} are {list(given)}, expected {depth} integers from 0 to '
                f'{most}, one for each layer'
            )
    return {name: ranks.get(name, [0] * depth) for name in known}


def check_coefficients(
    kind: str,
    drawn: Mapping[str, Sequence[torch.Tensor]],
    coef: Mapping[str, torch.Tensor | Sequence[torch.Tensor]] | None,
) -> None:
    """Raise ValueError unless the source is known and `coef` is given, in shape, where it is needed."""
    if kind not in COEFFICIENT_KINDS:
        raise ValueError(f'coefficients={kind!r} is unknown, expected one of {COEFFICIENT_KINDS}')
    if (coef is not None) != (kind == 'frozen'):
        raise ValueError(
            "coefficients='frozen' needs the matrix C as `coef`, and the other sources take none; "
            f'got coefficients={kind!r} with coef={"None" if coef is None else "a matrix"}'
        )
    given = coef or {}
    for name, rows in drawn.items() if kind == 'frozen' else ():
        if name not in given:
            raise ValueError(f'coef has no entry for projection {name!r}, only {list(given)}')
        if [row.shape for row in given[name]] != [row.shape for row in rows]:
            raise ValueError(
                f'coef[{name!r}] has shape {_shape([*given[name]])}, expected (number of layers, '
                f'num_atoms) = {_shape(rows)}'
            )
    numbers = {name: {row.numel() for row in rows} for name, rows in drawn.items()}
    if kind == 'mlp' and any(len(of_name) > 1 for of_name in numbers.values()):
        raise ValueError(
            "coefficients='mlp' makes the same number of coefficients for every layer, and the "
            f"groups have different numbers of atoms: {numbers}. Use 'direct', or equal numbers."
        )


def _shape(rows: Sequence[torch.Tensor]) -> str:
    """The shape of C, e.g. (4, 2), or, where groups of layers differ in S, (4, 2 or 3)."""
    return f'({len(rows)}, {" or ".join(map(str, sorted({row.numel() for row in rows})))})'
