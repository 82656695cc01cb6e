"""The headers of a caller's request, and what of them an upstream gets."""

from typing import Any

import pytest

from asgi_upstream._forwarding.headers import build_request_headers

Fields = list[tuple[bytes, bytes]]
HOP_BY_HOP = (
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade"
).split()
SAID_BY_PROXIES = (
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port "
    b"x-forwarded-prefix x-forwarded-server x-forwarded-ssl x-forwarded-scheme x-real-ip "
    b"x-original-url x-rewrite-url"
).split()
PROXY_FAMILIES = (
    b"x-forwarded x-forwarded-user x-forwarded-email x-forwarded-groups x-forwarded-access-token "
    b"x-forwarded-client-cert x-forwarded-uri x-forwarded-path x-forwarded-method x-forwarded-by "
    b"x-forwarded-protocol x-forwarded-for-me x-original-forwarded-for x-vercel-forwarded-for "
    b"x-scheme x-url-scheme x-original-host x-original-uri x-original-method x-original-proto "
    b"x-rewrite-path x-script-name x-host x-remote-user x-remote-addr remote-user remote-groups "
    b"remote-addr x-client-ip client-ip true-client-ip x-cluster-client-ip cf-connecting-ip "
    b"cf-connecting-ipv6 fly-client-ip fastly-client-ip x-azure-clientip x-originating-ip "
    b"x-auth-request-user x-auth-request-email x-authenticated-user x-webauth-user "
    b"ssl-client-cert ssl-client-verify ssl-client-s-dn x-ssl-client-cert x-ssl-client-verify "
    b"x-ssl-cert x-client-cert x-client-dn client-cert client-cert-chain x-arr-clientcert "
    b"x-amzn-oidc-identity x-amzn-oidc-data x-amzn-mtls-clientcert-subject "
    b"x-goog-authenticated-user-email x-ms-client-principal x-ms-client-principal-name "
    b"x-envoy-external-address x-authentik-username tailscale-user-login front-end-https "
    b"cf-access-authenticated-user-email x-pomerium-jwt-assertion x-vouch-user x-auth-user "
    b"x-auth-email x-auth-group x-auth-groups x-auth-roles x-envoy-internal x-envoy-original-path "
    b"x-real-port x-real-addr x-client-address x-client-host x-client-verify x-proto "
    b"x-front-end-https remote-group remote-host remote-port remote-name remote-email remote-ip "
    b"x-source-ip socket-ip x-user-ip client-ipv4 forwarded-for forwarded-proto x-arr-ssl "
    b"x-http-host-override x-consumer-username x-anonymous-consumer "
    b"x-credential-identifier x-tls-client-cert x-proxyuser-ip"
).split()
INNOCENT = (
    b"x-request-id x-correlation-id x-client-version x-client-id x-client-data x-client x-api-key "
    b"x-requested-with x-http-method-override x-csrf-token x-amz-date x-amzn-trace-id cf-ray "
    b"traceparent tracestate baggage x-b3-traceid x-user-id x-tenant x-auth-token authorization "
    b"referer origin via max-forwards x-schema x-realm x-original forward forwarded-to x-forward "
    b"remote x-ip x-zip client-id x-ms-client-request-id x-amz-content-sha256 x-stainless-os "
    b"x-envoy-upstream-rq-timeout-ms cf-access-client-id cf-access-client-secret x-trip user-ip-x "
    b"x-ship x-goog-api-key x-goog-user-project sec-fetch-user dnt x-hostname-policy accept "
    b"x-not-yet-forwarded"
).split()
SEEN = {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}


def scope_of(raw: Fields, **other: Any) -> dict[str, Any]:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "headers": raw,
        "client": ("192.0.2.7", 4321),
    }
    return {**scope, **other}


def forwarded(raw: Fields, *, trust: bool = False, **scope: Any) -> Fields:
    return build_request_headers(scope_of(raw, **scope), trust_forwarded_headers=trust)


def less_what_was_seen(fields: Fields) -> Fields:
    return [field for field in fields if field[0] not in SEEN]


def crossed(*raw: tuple[bytes, bytes], trust: bool = False, **scope: Any) -> Fields:
    """What crosses of these fields, without what this server says of the caller."""
    return less_what_was_seen(forwarded(list(raw), trust=trust, **scope))


def values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key == name]


both_trusts = pytest.mark.parametrize("trust", [False, True])


def is_subsequence(part: Fields, whole: Fields) -> bool:
    rest = iter(whole)
    return all(field in rest for field in part)
