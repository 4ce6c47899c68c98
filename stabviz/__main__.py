"""python -m stabviz: see stabviz.cli."""

import sys

from stabviz.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
