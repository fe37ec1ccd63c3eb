"""What a source bundle holds, what is refused, and that it is what was signed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pelton.errors import DeployError, SignatureError
from pelton.protocol.signing import Keyring, new_key
from pelton_platform.deploy import bundles
from pelton_platform.deploy.sources import Source

KEYRING = Keyring([new_key()], "test")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder as people have them: code, data, caches, hidden and compiled things."""
    folder = tmp_path / "project"
    for name, text in {
        "worker.py": "x = 1\n",
        "data/words.csv": "a,b\n",
        "package/__init__.py": "",
        "package/__pycache__/__init__.cpython-311.pyc": "compiled",
        ".git/config": "",
        ".env": "PASSWORD=1",
        ".venv/lib/site.py": "",
        "my-env/pyvenv.cfg": "",
        "my-env/lib/thing.py": "",
        "node_modules/x.js": "",
        "old.pyc": "",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    os.symlink("worker.py", folder / "same.py")
    return folder


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """An empty store."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    return folder


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def test_deploy_bundle_holds_sources_and_data_only(sources: Path, shelf: Path) -> None:
    """Caches, environments, hidden and compiled files stay out; links and run bits stay what they are."""
    bundle = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    assert bundle.new
    assert files_of(bundle.folder) == {
        "worker.py",
        "data/words.csv",
        "package/__init__.py",
        "run.sh",
        "same.py",
    }
    assert (bundle.folder / "same.py").is_symlink()
    assert os.access(bundle.folder / "run.sh", os.X_OK)
    assert not (bundle.folder / "worker.py").stat().st_mode & 0o222
    assert bundles.verify(bundle.digest, shelf, KEYRING) == bundle.folder


def test_deploy_bundle_is_named_by_its_content(sources: Path, shelf: Path) -> None:
    """The same content is stored once; another byte, name or run bit makes another bundle."""
    first = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    os.utime(sources / "worker.py", (1, 1))
    again = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    assert (again.digest, again.new) == (first.digest, False)
    digests = {first.digest}
    (sources / "worker.py").write_text("x = 2\n")
    digests.add(bundles.store(Source("worker.py", sources), shelf, KEYRING).digest)
    (sources / "run.sh").chmod(0o644)
    digests.add(bundles.store(Source("worker.py", sources), shelf, KEYRING).digest)
    (sources / "data/words.csv").rename(sources / "data/other.csv")
    digests.add(bundles.store(Source("worker.py", sources), shelf, KEYRING).digest)
    assert len(digests) == 4
    assert sorted(digests) == sorted(p.name for p in shelf.iterdir() if p.is_dir())


def test_deploy_bundle_over_the_limit_names_the_largest(sources: Path, shelf: Path) -> None:
    """A folder above the limit is refused with the names of what makes it large, and nothing is stored."""
    (sources / "model.bin").write_bytes(b"x" * 2_000_000)
    with pytest.raises(
        DeployError, match=r"more than the limit of 1 MiB; the largest are model\.bin \(1\.9 MiB\)"
    ):
        bundles.store(Source("worker.py", sources), shelf, KEYRING, limit_bytes=1 << 20)
    assert list(shelf.iterdir()) == []


@pytest.mark.parametrize("target", ["../outside.py", "/etc/hostname", "data/../../outside.py"])
def test_deploy_bundle_refuses_links_that_leave_it(sources: Path, shelf: Path, target: str) -> None:
    """A link to something outside of the folder is refused by name, and nothing is stored."""
    (sources.parent / "outside.py").write_text("secret")
    os.symlink(target, sources / "leak.py")
    with pytest.raises(DeployError, match=r"leak\.py is a link to .* not in the folder"):
        bundles.store(Source("worker.py", sources), shelf, KEYRING)
    assert list(shelf.iterdir()) == []


def test_deploy_bundle_refuses_dangling_links(sources: Path, shelf: Path) -> None:
    """A link to nothing is refused by name."""
    os.symlink("nothing.py", sources / "dangling.py")
    with pytest.raises(DeployError, match=r"dangling\.py is a link to nothing\.py, which does not exist"):
        bundles.store(Source("worker.py", sources), shelf, KEYRING)


def _overwrite(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text)


def _unlink(path: Path) -> None:
    path.parent.chmod(0o755)
    path.unlink()


def _add(path: Path) -> None:
    path.parent.chmod(0o755)
    path.write_text("import os")


def _relink(path: Path) -> None:
    path.unlink()
    os.symlink("/etc/hostname", path)


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (lambda f: _overwrite(f / "worker.py", "evil"), r"worker\.py is not what was signed"),
        (lambda f: _unlink(f / "data/words.csv"), r"data/words\.csv is not what was signed"),
        (lambda f: _add(f / "json.py"), r"json\.py was added"),
        (lambda f: _add(f / "package/worker.cpython-311.pyc"), r"worker\.cpython-311\.pyc was added"),
        (lambda f: _relink(f / "same.py"), r"same\.py is not what was signed"),
        (lambda f: (f.parent / f"{f.name}.manifest").unlink(), "has no manifest"),
    ],
)
def test_deploy_tampered_bundle_is_refused(
    sources: Path, shelf: Path, tamper: object, complaint: str
) -> None:
    """Changed, missing and added code, changed links and a missing manifest are all found."""
    bundle = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    assert callable(tamper)
    tamper(bundle.folder)
    with pytest.raises(SignatureError, match=complaint):
        bundles.verify(bundle.digest, shelf, KEYRING)
    mended = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    assert (mended.digest, mended.new) == (bundle.digest, True)
    assert bundles.verify(bundle.digest, shelf, KEYRING) == bundle.folder


def test_deploy_bundle_of_another_key_or_name_is_refused(sources: Path, shelf: Path) -> None:
    """A manifest counts only under the digest it describes and with a key of the namespace."""
    bundle = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    with pytest.raises(SignatureError):
        bundles.verify(bundle.digest, shelf, Keyring([new_key()], "test"))
    with pytest.raises(SignatureError):
        bundles.verify(bundle.digest, shelf, Keyring([new_key()], "other"))
    other = "0" * 64
    bundle.folder.rename(shelf / other)
    (shelf / f"{bundle.digest}.manifest").rename(shelf / f"{other}.manifest")
    with pytest.raises(SignatureError, match="the manifest of another bundle"):
        bundles.verify(other, shelf, KEYRING)


def test_deploy_data_written_beside_the_sources_is_left_alone(sources: Path, shelf: Path) -> None:
    """A file that a program wrote into its folder and that Python cannot import does not spoil the bundle."""
    bundle = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    (bundle.folder / "state.sqlite").write_text("rows")
    assert bundles.verify(bundle.digest, shelf, KEYRING) == bundle.folder


def test_deploy_bundle_leaves_the_platforms_home_out(sources: Path) -> None:
    """A home folder among the sources, with its broker's data and the store itself, is not a source."""
    shelf = sources / "platform-home" / "bundles"
    shelf.mkdir(parents=True)
    (shelf.parent / "records.log").write_text("data of the broker")
    first = bundles.store(Source("worker.py", sources), shelf, KEYRING)
    assert not [name for name in files_of(first.folder) if name.startswith("platform-home")]
    assert not bundles.store(Source("worker.py", sources), shelf, KEYRING).new


def test_ignored_files_are_left_out(tmp_path: Path) -> None:
    """`.peltonignore` of the folder names them as `.gitignore` would, folders and exceptions too."""
    for place in ("worker.py", "notes.log", "kept.log", "data/raw.bin", "sub/data.py", "sub/notes.log"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("")
    (tmp_path / ".peltonignore").write_text("# not these\n*.log\n!kept.log\n/data/\n")
    found = [path.relative_to(tmp_path).as_posix() for path in bundles.list_sources(tmp_path)]
    assert found == ["kept.log", "sub/data.py", "worker.py"]
    (tmp_path / ".peltonignore").write_text("!\n")
    with pytest.raises(DeployError, match=r"\.peltonignore: "):
        list(bundles.list_sources(tmp_path))


def test_deploy_bundles_nobody_uses_go_but_for_the_newest(sources: Path, shelf: Path, tmp_path: Path) -> None:
    """What specs or instances name stays, however old; of the rest the newest; compiled Python goes along."""
    pycache, digests, codes = tmp_path / "pycache", [], []
    for number in range(bundles.KEPT_UNUSED + 5):
        (sources / "worker.py").write_text(f"x = {number}\n")
        made = bundles.store(Source("worker.py", sources), shelf, KEYRING)
        digests.append(made.digest)
        compiled = pycache / made.folder.relative_to(made.folder.anchor)
        compiled.mkdir(parents=True)
        codes.append(bundles.store_code("f", f"code {number}".encode(), shelf, KEYRING))
    removed = bundles.prune(shelf, {digests[1], codes[2]}, pycache)
    left = {path.name for path in shelf.iterdir() if path.is_dir()}
    assert digests[1] in left
    assert {f"f-{codes[2]}.code"} <= {path.name for path in shelf.iterdir()}
    assert digests[0] not in left
    assert set(digests[-bundles.KEPT_UNUSED // 2 :]) <= left
    assert len(removed) == 2 * (bundles.KEPT_UNUSED + 5) - bundles.KEPT_UNUSED - 2
    assert {path.stem for path in shelf.glob("*.manifest")} == left
    assert {path.name for path in pycache.rglob("*") if path.name in digests} == left
    assert bundles.prune(shelf, {digests[1], codes[2]}, pycache) == []
