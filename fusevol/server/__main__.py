"""``python -m fusevol.server --spec FILE --ready-fd N``: one volume server."""

from __future__ import annotations

import sys

from fusevol.server.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
