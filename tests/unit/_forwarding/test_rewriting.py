"""What an upstream says of its own address: a table of redirects and cookies, and what holds."""

import re
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgi_upstream._forwarding.rewriting import rewrite_cookies, rewrite_locations
from tests.support.examples import count_examples
from tests.support.flavor import httpx

PLAIN = httpx.URL("http://up.example:8080")
WITH_PATH = httpx.URL("http://up.example:8080/v1/")
DEFAULT_PORT = httpx.URL("https://up.example")
MOUNT = b"/api"


def location(value: bytes, base: httpx.URL = PLAIN, mount: bytes = MOUNT) -> bytes:
    [(name, mapped)] = rewrite_locations([(b"location", value)], base, mount)
    assert name == b"location"
    return mapped


def cookie(value: bytes, base: httpx.URL = PLAIN, mount: bytes = MOUNT) -> bytes:
    [(name, mapped)] = rewrite_cookies([(b"set-cookie", value)], base, mount)
    assert name == b"set-cookie"
    return mapped


# --- Location ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"http://up.example:8080/a", b"/api/a"),
        (b"http://up.example:8080/", b"/api/"),
        (b"http://up.example:8080", b"/api/"),
        (b"http://up.example:8080?a=1", b"/api/?a=1"),
        (b"http://up.example:8080#f", b"/api/#f"),
        (b"http://up.example:8080/a/b/?c=/d&e=http://x#f?g/h", b"/api/a/b/?c=/d&e=http://x#f?g/h"),
        (b"http://up.example:8080/a%2fb%2Fc;d=%zz", b"/api/a%2fb%2Fc;d=%zz"),
        (b"HTTP://UP.Example:8080/A", b"/api/A"),
        (b"http://user:pw@up.example:8080/a", b"/api/a"),
        (b"//up.example:8080/a", b"/api/a"),
        (b"//UP.EXAMPLE:8080", b"/api/"),
        (b"/a", b"/api/a"),
        (b"/a/?b=//c#d", b"/api/a/?b=//c#d"),
        (b"/", b"/api/"),
        (b"/?a=1", b"/api/?a=1"),
        (b"/caf\xc3\xa9", b"/api/caf\xc3\xa9"),
    ],
)
def test_location_on_the_upstream_is_mapped_under_the_mount(value: bytes, expected: bytes) -> None:
    assert location(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"http://up.example:8080/v1/a", b"/api/a"),
        (b"http://up.example:8080/v1", b"/api"),
        (b"http://up.example:8080/v1?a", b"/api?a"),
        (b"//up.example:8080/v1/a?b#c", b"/api/a?b#c"),
        (b"/v1/a", b"/api/a"),
        (b"/v1/", b"/api/"),
        (b"/v1", b"/api"),
        (b"/v1#f", b"/api#f"),
        (b"/%76%31/a", b"/api/a"),
        (b"/v1/v1/a", b"/api/v1/a"),
        # The upstream's, but not under the base: callers cannot reach it, and are told no guess.
        (b"http://up.example:8080/v2/a", b"http://up.example:8080/v2/a"),
        (b"http://up.example:8080/v10", b"http://up.example:8080/v10"),
        (b"http://up.example:8080", b"http://up.example:8080"),
        (b"/v2/a", b"/v2/a"),
        (b"/v10/a", b"/v10/a"),
        (b"/", b"/"),
    ],
)
def test_location_outside_the_path_of_the_base_is_not_mapped(value: bytes, expected: bytes) -> None:
    assert location(value, WITH_PATH) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"http://other.example:8080/a",
        b"http://up.example.evil:8080/a",
        b"http://up.example:8080.evil/a",
        b"http://up.example:8080@evil/a",
        b"http://up.example/a",
        b"http://up.example:80/a",
        b"http://up.example:81/a",
        b"https://up.example:8443/a",
        b"ftp://up.example:8080/a",
        b"//other.example:8080/a",
        b"//up.example/a",
        b"a",
        b"a/b?c=1",
        b"./a",
        b"../a",
        b"?a=1",
        b"#a",
        b"",
        b"mailto:a@up.example",
        b"http:/a",
        b"http:a",
        b"http://",
        b"//",
        b"///",
        b"//?",
    ],
)
def test_location_elsewhere_or_relative_is_unchanged(value: bytes) -> None:
    assert location(value) == value


@pytest.mark.parametrize(
    "value",
    [
        b"http://up.example:8080/caf\xe9",
        b"http://[::1/a",
        b"http://up.example:port/a",
        b"http://up.example:8080/a\x01",
        b"http://up.example:" + b"9" * 5000,
        b"http://up.example:8080/" + b"a" * 70_000,
        b"\xff\xfe",
        b"http://xn--/a",
        b"//xn--ls8h-/a",
        b"http://xn--\x7f/",
        b"http://999.999.999.999/",
        b"http://[v1.a]/",
    ],
)
def test_what_is_no_url_stays_as_it_is(value: bytes) -> None:
    assert location(value) == value


@pytest.mark.parametrize(
    "value",
    [
        b"https://up.example/a",
        b"https://up.example:443/a",
        b"//up.example/a",
        b"//up.example:443/a",
        b"https://up.example:/a",
    ],
)
def test_location_with_or_without_the_default_port_is_mapped(value: bytes) -> None:
    assert location(value, DEFAULT_PORT) == b"/api/a"


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (b"http://up.example/a", DEFAULT_PORT),
        (b"http://up.example:80/a", DEFAULT_PORT),
        (b"https://up.example:8080/a", PLAIN),  # built from Host and X-Forwarded-Proto
        (b"https://up.example/a", httpx.URL("http://up.example")),
        (b"HTTPS://up.example:443/a", httpx.URL("http://up.example:80")),
        (b"//up.example:80/a", httpx.URL("http://up.example")),
    ],
)
def test_location_with_other_scheme_of_upstream_is_mapped(value: bytes, base: httpx.URL) -> None:
    assert location(value, base) == b"/api/a"


@pytest.mark.parametrize("value", [b"https://up.example:80/a", b"http://up.example:443/a"])
def test_location_with_other_port_of_upstream_stays(value: bytes) -> None:
    assert location(value, DEFAULT_PORT) == value


@pytest.mark.parametrize(
    ("value", "host", "expected"),
    [
        (b"https://app.example/login", b"app.example", b"/api/login"),
        (b"http://app.example:80/login", b"app.example", b"/api/login"),
        (b"//APP.example/login?a#b", b"app.example", b"/api/login?a#b"),
        (b"https://app.example/login", b"app.example:443", b"/api/login"),
        (b"https://app.example/login", b" app.example ", b"/api/login"),
        (b"https://app.example:8443/login", b"app.example:8443", b"/api/login"),
        (b"https://app.example/api/login", b"app.example", b"/api/login"),
        (b"http://[::1]:8000/a", b"[::1]:8000", b"/api/a"),
        (b"http://127.0.0.1:8000/a", b"127.0.0.1:8000", b"/api/a"),
    ],
)
def test_location_with_callers_host_is_mapped(value: bytes, host: bytes, expected: bytes) -> None:
    [(_, mapped)] = rewrite_locations([(b"location", value)], PLAIN, MOUNT, [host])
    assert mapped == expected


@pytest.mark.parametrize("host", [b"", b"app.example:8000", b"evil app.example", b"[", b"\xff"])
@pytest.mark.parametrize("value", [b"https://app.example/a", b"a/b", b"?a", b"https://"])
def test_location_stays_if_host_is_another_or_invalid(value: bytes, host: bytes) -> None:
    headers = [(b"location", value)]
    assert rewrite_locations(headers, PLAIN, MOUNT, [host]) == headers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"/api/a", b"/api/a"),
        (b"/api", b"/api"),
        (b"/api/?a=1#b", b"/api/?a=1#b"),
        (b"/%61pi/a", b"/%61pi/a"),
        (b"http://up.example:8080/api/a", b"/api/a"),
        (b"/apis/a", b"/api/apis/a"),
    ],
)
def test_location_already_under_mount_is_not_mapped_again(value: bytes, expected: bytes) -> None:
    assert location(value) == expected
    assert cookie(b"a=1; Path=" + value.partition(b"?")[0]) == b"a=1; Path=" + (
        expected.partition(b"?")[0]
        if not value.startswith(b"http")
        else b"http://up.example:8080/api/a"
    )


@pytest.mark.parametrize(
    ("base", "mount", "value", "expected"),
    [
        ("http://up.example/api/v1", b"/api", b"/api/v1/a", b"/api/a"),
        ("http://up.example/api", b"/api", b"/api/a", b"/api/a"),
        ("http://up.example/a", b"/a/b", b"/a/b/c", b"/a/b/c"),
        ("http://up.example/a", b"/a/b", b"/a/c", b"/a/b/c"),
        ("http://up.example/v1", b"/api", b"/api/a", b"/api/a"),
        ("http://up.example/v1?", b"/api", b"/v1/a", b"/api/a"),
        ("http://up.example/longer", b"/api", b"http://up.example/api/a", b"/api/a"),
        ("http://up.example", b"/caf%C3%A9", b"/caf%c3%a9/a", b"/caf%c3%a9/a"),
        ("http://up.example/a%20b", b"/api", b"/a%20b/c", b"/api/c"),
    ],
)
def test_location_under_base_and_mount_follows_the_longer(
    base: str, mount: bytes, value: bytes, expected: bytes
) -> None:
    assert location(value, httpx.URL(base), mount) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"5; url=/a", b"5; url=/api/a"),
        (b"0;URL='http://up.example:8080/a?b'", b"0;URL='/api/a?b'"),
        (b'1.5 , url = "/a" ; x', b'1.5 , url = "/api/a" ; x'),
        (b"0; /a", b"0; /api/a"),
        (b"0 url=/a", b"0 url=/api/a"),
        (b"url=/a", b"url=/api/a"),
        (b"0; url=/api/a", b"0; url=/api/a"),
        (b"5", b"5"),
        (b"", b""),
        (b"5; url=", b"5; url="),
        (b"5; url=''", b"5; url=''"),
        (b"5; url=https://other.example/a", b"5; url=https://other.example/a"),
    ],
)
def test_refresh_of_upstream_is_mapped(value: bytes, expected: bytes) -> None:
    assert rewrite_locations([(b"Refresh", value)], PLAIN, MOUNT) == [(b"Refresh", expected)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"</a>; rel=next", b"</api/a>; rel=next"),
        (
            b"<http://up.example:8080/a,b>; rel=next, </api/c>;rel=x,<https://cdn.example/d>",
            b"</api/a,b>; rel=next, </api/c>;rel=x,<https://cdn.example/d>",
        ),
        (b'</a>; title="see </b>"; rel=x', b'</api/a>; title="see </b>"; rel=x'),
        (b'</a>; title="\\"</b>", </c>', b'</api/a>; title="\\"</b>", </api/c>'),
        (b'</a>; title="\\\\", </c>', b'</api/a>; title="\\\\", </api/c>'),
        (b'</a>; title="", </c>', b'</api/a>; title="", </api/c>'),
        (b"<a>; rel=x", b"<a>; rel=x"),
        (b"</a, </b>", b"</a, </api/b>"),
        (b"</a", b"</a"),
        (b"<" * 60_000, b"<" * 60_000),
        (b'"\\' * 60_000, b'"\\' * 60_000),
    ],
)
def test_links_of_upstream_are_mapped(value: bytes, expected: bytes) -> None:
    assert rewrite_locations([(b"link", value)], PLAIN, MOUNT) == [(b"link", expected)]


PUBLIC = httpx.URL("http://up.example/public")


@pytest.mark.parametrize(
    "start", [b"//", b"/\\", b"/\t/", b"/\t\\", b"/\x01/", b"/\x7f/", b"\t//", b"/ /", b"%2F/"]
)
@pytest.mark.parametrize("prefix", [b"/public", b"http://up.example/public"])
def test_location_at_root_never_names_another_host(prefix: bytes, start: bytes) -> None:
    mapped = location(prefix + start + b"evil.example", PUBLIC, b"")
    seen_by_browser = re.sub(rb"[\0-\x20\x7f]", b"", mapped).replace(b"\\", b"/")
    assert mapped.startswith((b"/", b"http://up.example/"))
    assert not seen_by_browser.startswith(b"//")


def test_an_ipv6_upstream_is_known_by_its_brackets() -> None:
    base = httpx.URL("http://[::1]:8080")
    assert location(b"http://[::1]:8080/a", base) == b"/api/a"
    assert location(b"http://[::2]:8080/a", base) == b"http://[::2]:8080/a"


def test_without_a_mount_a_location_becomes_a_path() -> None:
    assert location(b"http://up.example:8080/a", mount=b"") == b"/a"
    assert location(b"http://up.example:8080", mount=b"") == b"/"
    assert location(b"/v1", WITH_PATH, b"") == b"/"
    assert location(b"/v1?a", WITH_PATH, b"") == b"/?a"


def test_location_that_no_caller_can_reach_stays_without_a_mount() -> None:
    outside = b"http://up.example:8080/v2/a"
    assert location(outside, WITH_PATH, b"") == outside


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (b"http://up.example:8080//evil.example/a", PLAIN),
        (b"//up.example:8080//evil.example/a", PLAIN),
        (b"/v1//evil.example/a", WITH_PATH),
        (b"http://up.example:8080/v1//evil.example", WITH_PATH),
        (b"http://up.example:8080/v1/\\evil.example", WITH_PATH),
        (b"/v1/\\evil.example", WITH_PATH),
    ],
)
def test_location_without_a_mount_names_no_other_host(value: bytes, base: httpx.URL) -> None:
    mapped = location(value, base, b"")
    # As browsers read it: a backslash is a slash, and two at the start begin a host.
    assert not re.match(rb"[/\\]{2}", mapped)


def test_other_headers_than_those_with_urls_stay() -> None:
    headers = [
        (b"Location", b"/a"),
        (b"content-location", b"http://up.example:8080/b"),
        (b"x-location", b"/a"),
        (b"content-disposition", b"</a>"),
        (b"location", b"/c"),
    ]
    assert rewrite_locations(headers, PLAIN, MOUNT) == [
        (b"Location", b"/api/a"),
        (b"content-location", b"/api/b"),
        (b"x-location", b"/a"),
        (b"content-disposition", b"</a>"),
        (b"location", b"/api/c"),
    ]


@pytest.mark.parametrize(
    ("base", "mount", "path"),
    [("http://u//", b"/b", b"/b/x"), ("http://u/a//", b"/a/b", b"/a/b/x")],
)
def test_slashes_at_the_end_of_the_base_do_not_lengthen_it(
    base: str, mount: bytes, path: bytes
) -> None:
    """The upstream knows the mount, which is longer than the base."""
    assert location(path, httpx.URL(base), mount) == path


# --- Set-Cookie ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a=1", b"a=1"),
        (b"a=1; Domain=up.example", b"a=1"),
        (b"a=1;domain=.up.example;Secure", b"a=1;Secure"),
        (b"a=1; DOMAIN = up.example; Domain=b; HttpOnly", b"a=1; HttpOnly"),
        (b"a=1; Domain", b"a=1"),
        (b"a=1; Path=/", b"a=1; Path=/api/"),
        (b"a=1; path=/b", b"a=1; path=/api/b"),
        (b"a=1; PATH=/b/c/; Secure", b"a=1; PATH=/api/b/c/; Secure"),
        (b"a=1; Path = /b ;Secure", b"a=1; Path =/api/b;Secure"),
        (b"a=1; Path=b", b"a=1; Path=b"),
        (b"a=1; Path", b"a=1; Path"),
        (
            b'a="x=1,y"; Max-Age=3; Path=/; Expires=Wed, 21 Oct 2015 07:28:00 GMT; Domain=x; '
            b"SameSite=Lax; Secure; HttpOnly; Partitioned; Unknown=/b",
            b'a="x=1,y"; Max-Age=3; Path=/api/; Expires=Wed, 21 Oct 2015 07:28:00 GMT; '
            b"SameSite=Lax; Secure; HttpOnly; Partitioned; Unknown=/b",
        ),
        # A cookie may be called so.
        (b"Domain=a; Path=/b", b"Domain=a; Path=/api/b"),
        (b"Path=/a", b"Path=/a"),
        (b"a=\xff\xe9; Path=/\xe9", b"a=\xff\xe9; Path=/api/\xe9"),
        (b"", b""),
        (b";;", b";;"),
    ],
)
def test_a_cookie_loses_its_domain_and_its_path_is_mapped(value: bytes, expected: bytes) -> None:
    assert cookie(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a=1; Path=/v1", b"a=1; Path=/api"),
        (b"a=1; Path=/v1/", b"a=1; Path=/api/"),
        (b"a=1; Path=/v1/b", b"a=1; Path=/api/b"),
        (b"a=1; Path=/v10", b"a=1; Path=/v10"),
        (b"a=1; Path=/v2", b"a=1; Path=/v2"),
    ],
)
def test_cookie_path_under_the_path_of_the_base_is_mapped(value: bytes, expected: bytes) -> None:
    assert cookie(value, WITH_PATH) == expected


def test_cookie_path_above_the_base_becomes_the_mount() -> None:
    # `/` covers all that callers reach of this upstream, and in the app that is the mount.
    """The cookie reaches the whole mount, and no more of the app."""
    assert cookie(b"a=1; Path=/", WITH_PATH) in (b"a=1; Path=/api", b"a=1; Path=/api/")


@pytest.mark.parametrize("name", [b"__Host-a", b"__host-a", b"__HOST-A", b" __Host-Http-a"])
def test_host_cookie_keeps_its_path(name: bytes) -> None:
    # Browsers compare the prefix in any case and refuse the cookie with another path (RFC 6265bis).
    assert cookie(name + b"=1; Secure; Path=/") == name + b"=1; Secure; Path=/"


def test_several_cookies_are_mapped_and_other_headers_stay() -> None:
    fields = [
        (b"Set-Cookie", b"a=1; Path=/a; Domain=x"),
        (b"cookie", b"a=1; Path=/a; Domain=x"),
        (b"set-cookie", b"b=2"),
        (b"location", b"/a"),
        (b"set-cookie", b"a=1; Path=/b"),
    ]
    assert rewrite_cookies(fields, PLAIN, MOUNT) == [
        (b"Set-Cookie", b"a=1; Path=/api/a"),
        (b"cookie", b"a=1; Path=/a; Domain=x"),
        (b"set-cookie", b"b=2"),
        (b"location", b"/a"),
        (b"set-cookie", b"a=1; Path=/api/b"),
    ]


def test_without_a_mount_a_cookies_path_only_loses_the_bases() -> None:
    assert cookie(b"a=1; Path=/v1/b", WITH_PATH, b"") == b"a=1; Path=/b"
    assert cookie(b"a=1; Path=/v1", WITH_PATH, b"") == b"a=1; Path=/"
    assert cookie(b"a=1; Path=/", PLAIN, b"") == b"a=1; Path=/"
    assert cookie(b"a=1; Path=/", WITH_PATH, b"") == b"a=1; Path=/"


# --- what always holds ---------------------------------------------------------------------

parts = st.lists(
    st.one_of(
        st.sampled_from(
            b"http: https: HTTP: // / /// up.example UP.example other.example :8080 :443 :80 : "
            b"@ user a v1 v10 .. . ? # ; = %2F %76 \\ [::1] xn-- \xe9 \xc3\xa9 \x01 \x7f".split()
        ),
        st.binary(max_size=3),
        st.just(b" "),
    ),
    max_size=8,
).map(b"".join)
bases = st.sampled_from([PLAIN, WITH_PATH, DEFAULT_PORT, httpx.URL("http://[::1]:8080/a%20b/")])
mounts = st.sampled_from([b"", b"/api", b"/caf%C3%A9/x"])
cookies = st.lists(
    st.one_of(st.sampled_from([b"Path=", b"Domain=", b"path", b";", b"; ", b"=", b"a=1"]), parts),
    max_size=8,
).map(b"".join)


def is_of(base: httpx.URL, value: bytes) -> bool:
    """Whether a browser that got `value` from the base would stay at the base's origin."""
    try:
        url = urlsplit(urljoin(str(base), value.decode("latin-1")))
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError:
        return False
    own = base.port or {"http": 80, "https": 443}[base.scheme]
    defaults = {(url.scheme, port), (base.scheme, own)} <= {("http", 80), ("https", 443)}
    return (
        url.scheme in ("http", "https") and url.hostname == base.host and (port == own or defaults)
    )


@settings(deadline=None, max_examples=count_examples(75))
@given(parts, bases, mounts)
@example(b"http://xn--/", PLAIN, b"/api")
def test_a_location_is_mapped_under_the_mount_or_stays_as_it_is(
    value: bytes, base: httpx.URL, mount: bytes
) -> None:
    mapped = location(value, base, mount)
    if mapped != value:
        assert mapped.startswith(mount + b"/") or re.match(re.escape(mount) + rb"$|[?#]", mapped)
        assert is_of(base, value), "another's was changed"


@settings(deadline=None)
@given(parts, bases, mounts)
@example(b"http://up.example:8080//a", PLAIN, b"")
def test_a_mapped_location_names_no_host(value: bytes, base: httpx.URL, mount: bytes) -> None:
    mapped = location(value, base, mount)
    if mapped != value:
        assert not re.match(rb"[/\\]{2}", mapped)


@settings(deadline=None, max_examples=count_examples(50))
@given(cookies, bases, mounts)
def test_any_cookie_loses_only_its_domain_and_maps_its_path(
    value: bytes, base: httpx.URL, mount: bytes
) -> None:
    before = [
        attribute
        for index, attribute in enumerate(value.split(b";"))
        if index == 0 or attribute.partition(b"=")[0].strip().lower() != b"domain"
    ]
    after = cookie(value, base, mount).split(b";")
    assert len(after) == len(before)
    assert after[0] == before[0]
    for old, new in zip(before, after, strict=True):
        key, _, path = new.partition(b"=")
        assert key == old.partition(b"=")[0]
        if new != old:
            assert key.strip().lower() == b"path"
            assert path.startswith(mount)


names = st.sampled_from(
    [b"location", b"set-cookie", b"Set-Cookie", b"x", b"content-location", b"link", b"refresh"]
)


@settings(deadline=None)
@given(st.lists(st.tuples(names, parts), max_size=6), bases, mounts)
def test_fields_keep_their_names_number_and_order(
    fields: list[tuple[bytes, bytes]], base: httpx.URL, mount: bytes
) -> None:
    for rewritten, own in (
        (rewrite_locations, (b"location", b"content-location", b"link", b"refresh")),
        (rewrite_cookies, (b"set-cookie",)),
    ):
        result = rewritten(list(fields), base, mount)
        assert [name for name, _ in result] == [name for name, _ in fields]
        assert [field for field in result if field[0].lower() not in own] == [
            field for field in fields if field[0].lower() not in own
        ]
