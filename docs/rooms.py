"""The picture of rooms in docs/architecture.md: floors, lines and imports, read from the package.

python docs/rooms.py            # writes it between the markers there
python docs/rooms.py --print
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- rooms: made by docs/rooms.py -->\n", "<!-- end of rooms -->\n"


def imported(path):
    """Dotted names that a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms():
    """room -> (lines, rooms that it imports); flat modules are one room, `config`."""
    package = ROOT / "bigmodel"
    folders = sorted(p.parent.name for p in package.glob("*/__init__.py"))
    found = {room: [0, set()] for room in ["config", *folders]}
    for path in sorted(package.rglob("*.py")):
        top = path.relative_to(package).parts[0]
        room = top if top in folders else "config"
        found[room][0] += len(path.read_text(encoding="utf-8").splitlines())
        if path.name == "__main__.py":
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "bigmodel" and len(parts) > 1 and parts[1] in folders and parts[1] != room:
                found[room][1].add(parts[1])
    return found


def floors(found):
    """Rooms by floor: each stands on lower ones alone."""
    left, out = dict(found), []
    while left:
        floor = [room for room, (_, below) in left.items() if not below & left.keys()]
        assert floor, f"a circle: {sorted(left)}"
        out.append(floor)
        left = {room: value for room, value in left.items() if room not in floor}
    return out


def needed(found, room):
    """What a room imports, without what follows from it: the arrows that are drawn."""

    def all_below(name):
        return {x for below in found[name][1] for x in (below, *all_below(below))}

    direct = found[room][1]
    return sorted(direct - {x for other in direct for x in all_below(other)})


def picture():
    found = rooms()
    total = sum(lines for lines, _ in found.values())
    arrows = sum(len(below) for _, below in found.values())
    out = ["```mermaid", "graph BT"]
    for room, (lines, _) in found.items():
        name = "config, errors, files, tree, words" if room == "config" else room
        out.append(f'  {room}["{name}<br/>{lines:,} lines"]')
    for room in found:
        out += [f"  {room} --> {below}" for below in needed(found, room)]
    levels = floors(found)
    out += [
        "```",
        "",
        f"{len(found)} rooms on {len(levels)} floors, {arrows} imports between them, {total:,} lines.",
        "",
    ]
    out += ["| floor | room | lines | imports, beside config |", "|---|---|---|---|"]
    for number, floor in enumerate(levels):
        for room in sorted(floor):
            lines, below = found[room]
            out.append(f"| {number} | {room} | {lines:,} | {', '.join(sorted(below))} |")
    return "\n".join(out) + "\n"


def main():
    if "--print" in sys.argv:
        print(picture(), end="")
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + picture() + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
