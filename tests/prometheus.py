"""A real Prometheus that scrapes a running service, with the configuration of k8s/monitoring, for
tests.
"""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from tests.service import Service, free_port, wait_for

COMMAND = shutil.which("prometheus")
CONFIG = Path(__file__).parents[1] / "k8s" / "monitoring" / "prometheus.yaml"
SCRAPE_INTERVAL_S = 4
"""Also what a scrape may take: on a busy machine Ray needs a second or two for one."""
Labels = tuple[str, ...]


class Prometheus:
    """A Prometheus process; it asks the service's own cluster what to scrape, and more often than
    the shipped file says.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        assert COMMAND is not None
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(_config(service)))
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                COMMAND,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={urlsplit(self.url).netloc}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def wait_until_scraping(self) -> None:
        """Wait until every target that the service names was scraped."""
        wait_for(self._is_scraping, timeout_s=90)

    def _is_scraping(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            targets = httpx.get(f"{self.url}/api/v1/targets").json()["data"]["activeTargets"]
        except httpx.HTTPError:
            return False
        return bool(targets) and all(target["health"] == "up" for target in targets)

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series of an instant query; an error of Prometheus is an AssertionError with
        its message.
        """
        parameters = {"query": expr, "time": str(time.time() if at is None else at)}
        answer = httpx.post(f"{self.url}/api/v1/query", data=parameters, timeout=30).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {expr}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def values(self, expr: str, *labels: str, at: float | None = None) -> dict[Labels, float]:
        """Return the number of each series, by some labels' values."""
        return {
            tuple(s["metric"].get(name, "") for name in labels): float(s["value"][1])
            for s in self.query(expr, at)
        }

    def label_values(self, series: str, label: str) -> list[str]:
        """Return what Grafana's `label_values` returns."""
        found: list[str] = httpx.get(
            f"{self.url}/api/v1/label/{label}/values", params={"match[]": series}
        ).json()["data"]
        return found

    def stop(self) -> None:
        """End this process, and no other."""
        self._process.terminate()
        self._process.wait(timeout=30)
        self._log.close()


def _config(service: Service) -> dict[str, Any]:
    """Return the shipped configuration with this cluster's address and the test's interval."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["global"]["scrape_interval"] = f"{SCRAPE_INTERVAL_S}s"
    for job in config["scrape_configs"]:
        for found in job["http_sd_configs"]:
            found |= {
                "url": service.cluster + urlsplit(found["url"]).path,
                "refresh_interval": "1s",
            }
            found["authorization"] = {
                "type": "Bearer",
                "credentials": service.token,
            }  # 2.42 has no default type here
    return config
