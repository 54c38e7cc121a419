"""`python -m toolhost.ingress`."""

import sys

from toolhost.ingress.runner import main

if __name__ == "__main__":
    sys.exit(main())
