"""Which checkpoint and videos a sweep's rows have: from its flags, or from sbatch/site.sh."""

import subprocess

from common.errors import UsageError
from runs.identity import ROOT
from sweeps.files import load_yaml
from sweeps.rows import kind_of_rows, words


def settings(args):
    """Flags that hold where the file says nothing, and flags that hold in any case."""
    kind = kind_of_rows(args.file)
    after = ["--batch-end", str(args.limit)] if args.limit else []
    for flag in kind.SITE:
        value = getattr(args, flag.removeprefix("--"))
        after += [flag, str(value)] if value else []
    if args.nano:
        after = ["--checkpoint", str(kind.NANO["--checkpoint"]), *after]
        if not args.videos:
            after += ["--videos", str(kind.NANO["--videos"])]
        return [], after
    before, shared = [], load_yaml(args.file).get("shared") or ""
    given = [token.partition("=")[0] for token in [*words(args.file, "shared", shared), *after]]
    for flag, variable in kind.SITE.items():
        value = site_setting(ROOT / "sbatch" / "site.sh", variable)
        before += [flag, value] if value else []
        if flag not in before + given:
            raise UsageError(
                f"no {flag}: pass it, write {variable}=... into sbatch/site.sh, or try --nano"
            )
    return before, after


def site_setting(path, variable):
    """What a variable is after site.sh, "" without the file."""
    if not path.is_file():
        return ""
    show = f'. "$0" > /dev/null 2>&1; printf %s "${variable}"'
    return subprocess.run(["bash", "-c", show, path], capture_output=True, text=True).stdout
