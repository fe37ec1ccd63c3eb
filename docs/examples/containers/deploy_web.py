"""Deploys a web server, and holds it when it is run as a script."""

from __future__ import annotations

from pelton import Container, Image, Probe

web = Container(
    name="hits",
    image=Image.debian_slim().add_local_file("web.py", "/app/web.py"),
    entrypoint=["python", "/app/web.py"],
    port=8080,
    readiness=Probe.http("/healthz", period=0.5),
    liveness=Probe.exec(["python", "-c", "pass"], period=30),
    min_instances=1,
    max_instances=3,
    cpu=0.5,
    memory="128Mi",
).run()

if __name__ == "__main__":
    web.wait()
    print(web.info.status, web.info.web_url)
    print(web.exec(["python", "-c", "import os; print('port', os.environ['PORT'])"]).stdout, end="")
    web.scale(2)
    print(len(web.wait().instances), "instances")
