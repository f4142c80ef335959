"""The executor plugin could be published by itself: its folder is all that it needs."""

import os
import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.azure


def test_the_plugin_is_a_package_of_its_own(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "src"], check=True)
    (wheel,) = tmp_path.glob("snakemake_executor_plugin_azureml-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    installed = sorted(path.name for path in (tmp_path / "site/snakemake_executor_plugin_azureml").glob("*.py"))
    assert installed == sorted(path.name for path in (ROOT / "src/snakemake_executor_plugin_azureml").glob("*.py"))

    script = "import snakemake_executor_plugin_azureml as plugin; print(plugin.__file__)\n"
    script += "from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry as Registry\n"
    script += "print(Registry().get_plugin('azureml').settings_cls.__name__)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    file, settings = done.stdout.split()
    assert file.startswith(str(tmp_path / "site"))
    assert settings == "ExecutorSettings"
