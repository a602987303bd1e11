"""Commands: flags in, files out."""

import os
import sys

# A training step on a CPU takes gigabytes from the C library and gives them back. In
# pages of 4 KiB, Linux spends a third of the step on handing them out; in large pages,
# which glibc has to be asked for before a process starts, next to nothing. While Python
# looks for the module after `python -m`, argv[0] is "-m": a program that imports this
# package is not started anew.
if (
    sys.platform == "linux"
    and sys.argv[0] == "-m"
    and "GLIBC_TUNABLES" not in os.environ
):
    # https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
