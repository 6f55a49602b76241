"""What a screen reader finds of an application, as JSON: for Debian's own Python, with pyatspi.

``/usr/bin/python3 accessible_tree.py PID`` answers each line of its input with one: the windows of
that process, each as a tree of what is showing. It imports nothing of qvpn.
"""

# mypy: ignore-errors

import json
import sys

import pyatspi

_MOST = 3000  # nodes; a tree with a cycle ends here


def main():
    """Answer until there is nothing to answer."""
    pid = int(sys.argv[1])
    pyatspi.setTimeout(20_000, 60_000)  # milliseconds, for a machine that is busy
    for _ in sys.stdin:
        desktop = pyatspi.Registry.getDesktop(0)
        found = [app for app in desktop if app and app.get_process_id() == pid]
        windows = [window for app in found for window in app if showing(window)]
        print(json.dumps([tree(window, [_MOST]) for window in windows]), flush=True)


def showing(node):
    """Whether a node is seen; a table that scrolls has more than is."""
    return node is not None and node.getState().contains(pyatspi.STATE_SHOWING)


def tree(node, left):
    """A node and what is in it."""
    left[0] -= 1
    labels = [
        relation.getTarget(0).name
        for relation in node.getRelationSet()
        if relation.getRelationType() == pyatspi.RELATION_LABELLED_BY
    ]
    return {
        "role": node.getRoleName(),
        "name": node.name or "",
        "label": " ".join(labels),
        "description": node.description or "",
        "focusable": node.getState().contains(pyatspi.STATE_FOCUSABLE),
        "children": [tree(child, left) for child in node if showing(child)] if left[0] > 0 else [],
    }


if __name__ == "__main__":
    main()
