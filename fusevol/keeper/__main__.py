"""``python -m fusevol.keeper --dir DIRECTORY [--ready-fd N]``: the keeper of one agent's volume servers."""

from __future__ import annotations

import sys

from fusevol.keeper.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
