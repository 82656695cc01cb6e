"""JupyterLab: login, kernel and terminal by WebSocket, upload, download."""

import pytest
from playwright.sync_api import Page

from tests.real_clients.apps.site import Recipe, Site, Visitor, download, run, skip_without
from tests.support.waiting import eventually

pytestmark = skip_without("jupyter")


def command(port: int) -> list[str]:
    return [
        *("jupyter-lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.base_url=/jupyter/", "--ServerApp.allow_remote_access=True"),
        *(
            "--IdentityProvider.token=secret",
            "--ServerApp.root_dir=.",
            "--ServerApp.port_retries=0",
        ),
    ]


RECIPE = Recipe(
    "jupyter", "/jupyter", command, {"prefix": "", "preserve_host": True}, ready="/jupyter/api"
)

# A cookie of the page holds the token that Jupyter wants back in a header.
API = """
    const api = (method, path, body) => fetch("/jupyter/api/" + path, {
        method,
        headers: {"X-XSRFToken": document.cookie.match(/_xsrf=([^;]+)/)[1]},
        body: body === undefined ? undefined : JSON.stringify(body),
    });
"""
# Start a kernel, run code in it over a WebSocket, and return what it printed.
KERNEL = (
    API
    + """
    const kernel = await (await api("POST", "kernels", {name: "python3"})).json();
    const socket = new WebSocket(
        `ws://${location.host}/jupyter/api/kernels/${kernel.id}/channels?session_id=s1`);
    await new Promise((resolve, reject) => {
        socket.onopen = resolve; socket.onclose = event => reject(event.code);
    });
    window.socket = socket;
    let text = "";
    await new Promise((resolve, reject) => {
        socket.onclose = event => reject(new Error("closed " + event.code));
        socket.onmessage = ({data}) => {
            const message = JSON.parse(data);
            if (message.msg_type == "stream") text += message.content.text;
            if (message.msg_type == "display_data") text += message.content.data["text/plain"];
            if (message.msg_type == "status" && message.parent_header.msg_id == "m1"
                && message.content.execution_state == "idle") resolve();
        };
        socket.send(JSON.stringify({
            header: {msg_id: "m1", session: "s1", username: "", msg_type: "execute_request",
                     version: "5.3", date: new Date().toISOString()},
            parent_header: {}, metadata: {}, channel: "shell", buffers: [],
            content: {code: args[0], silent: false, store_history: false,
                      user_expressions: {}, allow_stdin: false},
        }));
    });
    return [kernel.id, text];
"""
)


def log_in(visitor: Visitor) -> Page:
    page = visitor.open("/lab")
    page.get_by_label("Password or token").fill("secret")
    page.get_by_role("button", name="Log in", exact=True).click()
    page.get_by_text("Launcher").first.wait_for()
    return page


def kernels(page: Page) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = run(page, API + 'return (await api("GET", "kernels")).json()')
    return listed


def test_kernel_runs_code_over_a_websocket(visitor: Visitor) -> None:
    page = log_in(visitor)
    _, text = run(page, KERNEL, "print(6 * 7)")
    assert text == "42\n"
    page.reload()
    page.get_by_text("Launcher").first.wait_for()


def test_kernel_output_of_20_mb_arrives(visitor: Visitor) -> None:
    page = log_in(visitor)
    # Printed text has a limit of Jupyter's own.
    _, text = run(page, KERNEL, "display({'text/plain': 'x' * 20_000_000}, raw=True)")
    assert len(text) == 20_000_000


def test_three_tabs_have_a_kernel_each(visitor: Visitor, site: Site) -> None:
    pages = [log_in(visitor)] + [visitor.open("/lab") for _ in range(2)]
    for number, page in enumerate(pages):
        page.get_by_text("Launcher").first.wait_for()
        assert run(page, KERNEL, f"print({number})")[1] == f"{number}\n"


def test_closed_tab_frees_the_kernels_websocket(visitor: Visitor) -> None:
    page = log_in(visitor)
    other = visitor.open("/lab")
    other.get_by_text("Launcher").first.wait_for()
    kernel, _ = run(page, KERNEL, "pass")

    def connections() -> object:
        return next(item["connections"] for item in kernels(other) if item["id"] == kernel)

    assert connections() == 1
    page.close()
    eventually(lambda: connections() == 0)


def test_terminal_echoes_what_is_typed(visitor: Visitor) -> None:
    page = log_in(visitor)
    text = run(
        page,
        API
        + """
        const terminal = await (await api("POST", "terminals")).json();
        const socket = new WebSocket(
            `ws://${location.host}/jupyter/terminals/websocket/${terminal.name}`);
        let text = "";
        await new Promise((resolve, reject) => {
            socket.onclose = event => reject(new Error("closed " + event.code));
            socket.onmessage = ({data}) => {
                const [kind, words] = JSON.parse(data);
                if (kind == "setup") socket.send(JSON.stringify(["stdin", "echo $((6*7))\\r"]));
                if (kind == "stdout") text += words;
                if (text.includes("42")) resolve();
            };
        });
        socket.onclose = null;
        socket.close();
        await api("DELETE", "terminals/" + terminal.name);
        return text;
        """,
    )
    assert "42" in text


def test_upload_and_download_keep_every_byte(visitor: Visitor, site: Site) -> None:
    page = log_in(visitor)
    data = bytes(range(256)) * 40_000
    path = site.application.home / "local.bin"
    path.write_bytes(data)
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Upload Files").or_(
            page.locator("[data-command='filebrowser:upload'], [title^='Upload']")
        ).first.click()
    choosing.value.set_files({"name": "sent.bin", "mimeType": "", "buffer": data})
    sent = site.application.home / "sent.bin"
    eventually(lambda: sent.exists() and sent.stat().st_size == len(data))
    assert sent.read_bytes() == data
    assert download(page, "/jupyter/files/sent.bin?download=1") == data


def test_page_works_again_after_the_server_restarts(visitor: Visitor, site: Site) -> None:
    visitor.expected = ("502 ", "503 ", "404 ", "403 ")
    page = log_in(visitor)
    site.application.restart()
    page.reload()
    page.get_by_text("Launcher").first.wait_for()
    assert run(page, KERNEL, "print(1)")[1] == "1\n"


def test_wrong_token_is_refused(visitor: Visitor) -> None:
    visitor.expected = ("401 ",)
    page = visitor.open("/lab")
    page.get_by_label("Password or token").fill("wrong")
    page.get_by_role("button", name="Log in", exact=True).click()
    page.get_by_text("Invalid credentials").wait_for()


@pytest.mark.parametrize("path", ["", "/", "/lab"])
def test_short_addresses_lead_to_the_login(visitor: Visitor, path: str) -> None:
    page = visitor.open(path)
    assert page.url.startswith(f"{visitor.site.url}/login?next=")
