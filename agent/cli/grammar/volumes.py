"""Commands on pools, on volumes and on where they are mounted."""

from __future__ import annotations

import argparse

from agent.cli.grammar.common import Commands, add, namespace_option, seconds


def add_mount(commands: Commands) -> None:
    """``mount``."""
    parser = add(
        commands,
        "mount",
        "mounts",
        "mount a claim at a directory",
        "  fusevol mount data /mnt/data\n  fusevol mount data /mnt/data -n shop --read-only",
    )
    parser.add_argument("claim", metavar="CLAIM", help="name of a PersistentVolumeClaim")
    parser.add_argument("target", metavar="TARGET", help="directory to mount it at; created when missing")
    namespace_option(parser)
    parser.add_argument("--read-only", action="store_true", help="writes fail with EROFS")


def add_umount(commands: Commands) -> None:
    """``umount``."""
    parser = add(
        commands,
        "umount",
        "mounts",
        "undo a mount; succeeds when nothing is mounted there",
        "  fusevol umount /mnt/data",
    )
    parser.add_argument("target", metavar="TARGET", help="the directory given to `fusevol mount`")


def add_pool(commands: Commands) -> None:
    """``pool``."""
    parser = add(
        commands,
        "pool",
        "pools",
        "make, grow, delete and look at the pools of storage",
        "  fusevol pool show\n  fusevol pool show default\n  fusevol pool check\n  fusevol pool scan\n"
        "  fusevol pool create fast --device /dev/nvme1n1 --fs xfs\n"
        "  fusevol pool create quick --image /srv/quick.img --size 50Gi --overcommit 1.5\n"
        "  fusevol pool create shared --path /mnt/nfs/fusevol\n"
        "  fusevol pool grow quick --size 80Gi\n  fusevol pool delete quick",
    )
    parser.add_argument(
        "action",
        choices=["show", "check", "scan", "create", "grow", "delete"],
        help="show: capacity and volumes; check: find damage; scan: find volumes that nobody knows; "
        "create, grow, delete: one pool",
    )
    parser.add_argument("pool", nargs="?", metavar="NAME", help="which pool (show, check, scan: only this one)")
    orphans = parser.add_argument_group("scan").add_mutually_exclusive_group()
    # each takes the pool's name, too: argparse refuses an optional word after an option
    orphans.add_argument("--adopt", nargs="?", const="", metavar="NAME", help="make PersistentVolumes, which are kept")
    orphans.add_argument("--purge", nargs="?", const="", metavar="NAME", help="move them to the trash")
    parser.add_argument(
        "--others", action="store_true", help="scan: also what agents of other nodes have made in a pool that is shared"
    )
    where = parser.add_argument_group("create")
    where.add_argument("--path", metavar="DIR", help="in a directory, empty or of a pool, of whatever filesystem")
    where.add_argument("--device", metavar="DEV", help="on a block device, which is formatted if it holds nothing")
    where.add_argument("--image", metavar="FILE", help="in a file of --size, which is made if it is missing")
    where.add_argument("--size", metavar="SIZE", help="of the image file, such as 50Gi (create, grow)")
    where.add_argument("--fs", metavar="FS", help="xfs or btrfs (default: btrfs: its snapshots are instant)")
    where.add_argument(
        "--force",
        action="store_true",
        help="format even what holds data: that is destroyed (delete: forget one that is not there)",
    )
    where.add_argument("--simple-quotas", action="store_true", help="btrfs: cheaper quotas, clones count as nothing")
    where.add_argument("--driver", metavar="NAME", help="how volumes are made (default: what fits the filesystem)")
    where.add_argument("--overcommit", type=float, metavar="X", help="promise at most X times the pool's size")


def add_trash(commands: Commands) -> None:
    """``trash``."""
    parser = add(
        commands,
        "trash",
        "trash",
        "show deleted volumes, bring one back, or delete it for ever",
        "  fusevol trash list\n  fusevol trash restore pvc-0123.1 --claim data\n"
        "  fusevol trash purge pvc-0123.1\n  fusevol trash purge --all fast",
    )
    parser.add_argument(
        "action",
        choices=["list", "restore", "purge"],
        help="list: what is there; restore: make a volume and a claim of it again; purge: delete it before its time",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="ENTRY|POOL",
        help="restore, purge: which one, such as pvc-0123.1 or POOL/pvc-0123.1; list: only of this pool",
    )
    parser.add_argument("--claim", metavar="NAME", help="restore: the claim that is made for it")
    namespace_option(parser)
    parser.add_argument("--all", nargs="?", const="", metavar="POOL", help="purge: all that is in the trash, of a pool")


def add_move(commands: Commands) -> None:
    """``move``."""
    parser = add(
        commands,
        "move",
        "move",
        "have a claim's volume in another pool, while nothing uses it",
        "  fusevol move data --to fast\n  fusevol move pv/pvc-1b2c --to fast --no-wait",
    )
    parser.add_argument("what", metavar="CLAIM", help="name of a PersistentVolumeClaim, or pvc/NAME, or pv/NAME")
    parser.add_argument("--to", required=True, metavar="POOL", help="the pool that it is to be in")
    namespace_option(parser)
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until it is there (default) or only ask for it",
    )
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="wait no longer; it is moved nevertheless")


def add_top(commands: Commands) -> None:
    """``top``."""
    parser = add(
        commands,
        "top",
        "top",
        "show what the mounted volumes use, as it changes",
        "  fusevol top\n  fusevol top --once --sort share\n  fusevol top --interval 10s",
    )
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument(
        "--interval", type=seconds, default=2.0, metavar="TIME", help="how often it is looked at (default: 2s)"
    )
    parser.add_argument(
        "--sort", choices=["used", "share", "name"], default="used", help="the most used, the fullest, or by name"
    )
