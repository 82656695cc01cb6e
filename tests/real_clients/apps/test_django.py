"""Django's admin: login, CSRF, redirects, upload, and a stream that its caller abandons."""

import subprocess
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.real_clients.apps.site import (
    HOST,
    OTHER_HOST,
    Recipe,
    Site,
    Visitor,
    bin_folder,
    download,
    run,
    serve,
    skip_without,
)
from tests.real_clients.upstreams import ASYNCIO
from tests.support.waiting import eventually

pytestmark = skip_without("django")

# The project, in two files. The first is the settings and the URLs too.
MANAGE = """
import sys, time
from pathlib import Path
from django.conf import settings

HOME = Path(__file__).parent
settings.configure(
    DEBUG=True,
    SECRET_KEY="secret",
    ALLOWED_HOSTS=["apps.example"],
    FORCE_SCRIPT_NAME="/dj",
    STATIC_URL="/dj/static/",
    MEDIA_URL="/dj/media/",
    MEDIA_ROOT=HOME / "media",
    ROOT_URLCONF="manage",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": HOME / "db"}},
    INSTALLED_APPS=["django.contrib." + name for name in
        ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")] + ["documents"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages"]}}],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)
import django
django.setup()
from django.contrib import admin
from django.contrib.staticfiles.views import serve as serve_static
from django.http import HttpResponseRedirect, StreamingHttpResponse
from django.urls import path, re_path
from django.views.static import serve

def ticks():
    try:
        while True:
            time.sleep(0.05)
            yield b"data: tick\\n\\n"
    finally:
        (HOME / "abandoned").write_text("yes")

urlpatterns = [
    path("admin/", admin.site.urls),
    path("events", lambda request: StreamingHttpResponse(ticks(), "text/event-stream")),
    path("absolute", lambda request:
        HttpResponseRedirect(request.build_absolute_uri("/dj/admin/"))),
    re_path("^static/(?P<path>.*)$", serve_static),
    re_path("^media/(?P<path>.*)$", serve, {"document_root": HOME / "media"}),
]

if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    sys.modules["manage"] = sys.modules["__main__"]
    execute_from_command_line(sys.argv)
"""
MODELS = """
from django.contrib import admin
from django.db import models

class Document(models.Model):
    title = models.CharField(max_length=99)
    file = models.FileField()

    def __str__(self):
        return self.title

admin.site.register(Document)
"""


def prepare(home: Path) -> None:
    (home / "manage.py").write_text(MANAGE)
    (home / "documents").mkdir()
    (home / "documents/__init__.py").touch()
    (home / "documents/models.py").write_text(MODELS)
    for command in (["migrate", "--run-syncdb"], ["createsuperuser", "--no-input"]):
        subprocess.run(
            [bin_folder("django") / "python", "manage.py", *command],
            cwd=home,
            check=True,
            capture_output=True,
            env={
                "DJANGO_SUPERUSER_USERNAME": "ann",
                "DJANGO_SUPERUSER_PASSWORD": "of-ann",
                "DJANGO_SUPERUSER_EMAIL": "ann@apps.example",
            },
        )


RECIPE = Recipe(
    "django",
    "/dj",
    lambda port: ["python", "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"],
    {"preserve_host": True},
)


def log_in(visitor: Visitor, password: str = "of-ann") -> Page:
    page = visitor.open("/admin/")
    assert page.url == f"{visitor.site.url}/admin/login/?next=/dj/admin/"
    page.get_by_label("Username").fill("ann")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    return page


def add_document(page: Page, site: Site, title: str, data: bytes) -> None:
    page.goto(f"{site.url}/admin/documents/document/add/")
    page.get_by_label("Title").fill(title)
    file = {"name": f"{title}.bin", "mimeType": "application/octet-stream", "buffer": data}
    page.get_by_label("File").set_input_files(file)  # type: ignore[arg-type]
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("was added successfully").wait_for()


def test_login_leads_back_to_the_admin(visitor: Visitor, site: Site) -> None:
    page = log_in(visitor)
    page.get_by_role("heading", name="Site administration").wait_for()
    assert page.url == f"{site.url}/admin/"
    page.reload()
    page.get_by_role("heading", name="Site administration").wait_for()
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("heading", name="Logged out").wait_for()


def test_wrong_password_is_refused(visitor: Visitor) -> None:
    page = log_in(visitor, "wrong")
    page.get_by_text("Please enter the correct username and password").wait_for()


def test_uploaded_file_is_downloaded_unchanged(visitor: Visitor, site: Site) -> None:
    page, data = log_in(visitor), bytes(range(256)) * 40_000
    add_document(page, site, "large", data)
    page.get_by_role("link", name="large").first.click()
    address = page.get_by_role("link", name="large.bin").get_attribute("href")
    assert address is not None
    assert address.startswith("/dj/media/")
    assert download(page, address) == data


def test_three_tabs_each_add_a_document(visitor: Visitor, site: Site) -> None:
    pages = [log_in(visitor), visitor.open("/admin/"), visitor.open("/admin/")]
    for number, page in enumerate(pages):
        add_document(page, site, f"tab{number}", b"x")
    pages[0].goto(f"{site.url}/admin/documents/document/")
    for number in range(3):
        pages[0].get_by_role("link", name=f"tab{number}").first.wait_for()


def test_form_of_another_origin_is_refused(visitor: Visitor, site: Site) -> None:
    log_in(visitor)
    visitor.expected = ("403 POST",)
    page = visitor.context.new_page()
    page.goto(site.root.replace(HOST, OTHER_HOST) + "/state")
    run(
        page,
        """
        const form = document.createElement("form");
        form.method = "post"; form.action = args[0]; document.body.append(form); form.submit();
        """,
        f"{site.url}/admin/logout/",
    )
    page.get_by_text("CSRF verification failed").wait_for()


def test_absolute_redirect_stays_at_the_public_address(visitor: Visitor, site: Site) -> None:
    page = log_in(visitor)
    page.goto(f"{site.url}/absolute")
    assert page.url == f"{site.url}/admin/"


def test_session_outlives_a_restart_of_the_server(visitor: Visitor, site: Site) -> None:
    page = log_in(visitor)
    page.wait_for_load_state("networkidle")
    site.application.restart()
    add_document(page, site, "later", b"x")


def test_closed_tab_ends_the_stream_of_the_server(visitor: Visitor, site: Site) -> None:
    abandoned = site.application.home / "abandoned"
    abandoned.unlink(missing_ok=True)
    page = visitor.open("/admin/login/")
    page.evaluate(
        """() => new Promise(resolve => {
            new EventSource("/dj/events").onmessage = resolve;
        })"""
    )
    assert site.open_exchanges == 1
    page.close()
    site.wait_until_idle()
    eventually(abandoned.exists)


def test_login_without_preserve_host_fails_csrf(browser: Browser, tmp_path: Path) -> None:
    prepare(tmp_path)
    manage = tmp_path / "manage.py"
    manage.write_text(manage.read_text().replace('["apps.example"]', '["*"]'))
    with serve(replace(RECIPE, options={}), tmp_path, ASYNCIO) as site:
        site.use(browser)
        with site.visitor() as visitor:
            visitor.expected = ("403 POST",)
            page = log_in(visitor)
            page.get_by_text("Origin checking failed").wait_for()
