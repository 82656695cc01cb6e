"""Cookie jars that store nothing."""

from http.cookiejar import CookieJar, DefaultCookiePolicy


class _RejectCookies(DefaultCookiePolicy):
    """Sends the cookies that the jar holds, but stores no cookie of a response (RFC 6265 5.3)."""

    def set_ok(self, cookie: object, request: object) -> bool:
        return False


def reject_cookies(jar: CookieJar) -> None:
    """Make a jar store no cookies of responses."""
    jar.set_policy(_RejectCookies())


def rejects_cookies(jar: CookieJar) -> bool:
    """Whether `reject_cookies` was called with this jar.

    `CookieJar` has `set_policy`, but nothing public to read the policy (Python 3.11 to 3.14).
    """
    return isinstance(getattr(jar, "_policy", None), _RejectCookies)


def is_empty(jar: CookieJar) -> bool:
    """Whether a jar holds no cookies. `len(jar)` walks through it, and most jars never held one."""
    return not getattr(jar, "_cookies", True) or not len(jar)
