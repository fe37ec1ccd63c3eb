"""A function and a program whose images bring what this machine does not have."""

from pelton import Container, Image, function

image = (
    Image.debian_slim()
    .pip_install(["humanize>=4.9,<5"])
    .add_local_dir("templates", "/app/templates")
    .add_local_file("consumer.py", "/app/consumer.py")
    .env({"GREETING": "Hello"})
    .workdir("/app")
)

with image.imports():
    import humanize


@function(container=Container(name="reports", image=image, max_concurrent_requests=4))
def report(name: str, size: int) -> str:
    """One line about a file, by the template of the image."""
    with open("/app/templates/line.txt") as template:
        return template.read().strip().format(name=name, size=humanize.naturalsize(size))


Container(name="report-consumer", image=image, entrypoint=["python", "/app/consumer.py"]).run()
