"""Trees of arrays: dicts, lists and tuples, nested, with arrays for leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tree = Any  # an array, or a dict, list or tuple of trees


def rebuild(tree: Any, items: list[Any]) -> Any:
    """Make a list or tuple (a named one too) of the type of `tree`."""
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def map_tree(leaf: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply `leaf` to every array of a tree."""
    if isinstance(tree, dict):
        return {key: map_tree(leaf, item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return rebuild(tree, [map_tree(leaf, item) for item in tree])
    return leaf(tree)


def leaves(tree: Tree) -> list[Any]:
    """List the arrays of a tree."""
    arrays: list[Any] = []
    map_tree(arrays.append, tree)
    return arrays


def zip_trees(leaf: Callable[[Any, Any, str], Any], tree: Tree, other: Tree, name: str) -> Tree:
    """Apply `leaf` to the arrays of two trees of one structure; None stands for no tangents."""
    if other is None:
        return tree
    if tree is None:
        return leaf(tree, other, name)
    if isinstance(tree, dict) and isinstance(other, dict) and tree.keys() == other.keys():
        return {k: zip_trees(leaf, item, other[k], f"{name}[{k!r}]") for k, item in tree.items()}
    sequences = isinstance(tree, list | tuple) and isinstance(other, list | tuple)
    if sequences and len(tree) == len(other):
        pairs = enumerate(zip(tree, other, strict=True))
        return rebuild(tree, [zip_trees(leaf, t, o, f"{name}[{i}]") for i, (t, o) in pairs])
    if isinstance(tree, dict | list | tuple) or isinstance(other, dict):
        raise TypeError(
            f"{name} and what goes with it must have one structure, got {_structure(tree)} and "
            f"{_structure(other)}"
        )
    return leaf(tree, other, name)


def _structure(tree: Tree) -> str:
    """Name a tree's kind and its branches, for errors."""
    if isinstance(tree, dict):
        return f"a dict of {', '.join(map(repr, tree))}"
    if isinstance(tree, list | tuple):
        return f"a {type(tree).__name__} of {len(tree)}"
    return f"a {type(tree).__name__}"
