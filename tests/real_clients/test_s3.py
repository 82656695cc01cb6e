"""S3's clients, whose signature must hold behind the relay: botocore and rclone, in front of moto.

A signature of version 4 covers the method, the path, the query, Host and other fields.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.real_clients.programs import listening, program, run
from tests.real_clients.upstreams import Upstreams, both_transports, open_directly
from tests.support.servers import Server

pytestmark = both_transports

DATA = random.Random(3).randbytes(6 << 20)
EVERYTHING = {"Version": "2012-10-17"} | {
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
}


def client(service: str, url: str, key: dict[str, str]) -> Any:
    return botocore.session.Session().create_client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
        config=Config(
            s3={"addressing_style": "path"},
            proxies={},
            retries={"max_attempts": 0},
            read_timeout=60,
        ),
    )


@pytest.fixture(scope="session")
def key(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """moto, with a user of which it has the secret, and which from here on checks signatures."""
    home, port = tmp_path_factory.mktemp("s3"), upstreams.ports["s3"]
    with listening(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, home
    ):
        nobody = {"AccessKeyId": "a", "SecretAccessKey": "b"}
        iam = client("iam", upstreams.url("s3"), nobody)
        iam.create_user(UserName="ann")
        iam.put_user_policy(UserName="ann", PolicyName="all", PolicyDocument=json.dumps(EVERYTHING))
        key = iam.create_access_key(UserName="ann")["AccessKey"]
        iam.close()
        s3 = client("s3", upstreams.url("s3"), key)
        s3.create_bucket(Bucket="bucket")
        s3.close()
        check = Request(upstreams.url("s3") + "/moto-api/reset-auth", b"0")
        check.add_header("content-type", "text/plain")
        open_directly(check, timeout=10).close()
        yield key


@pytest.fixture
def s3(url: str, key: dict[str, str]) -> Iterator[Any]:
    s3 = client("s3", url, key)
    yield s3
    s3.close()


def refused_by(s3: Any) -> str:
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket="bucket", Key="refused", Body=b"x")
    s3.close()
    code: str = caught.value.response["Error"]["Code"]
    return code


@pytest.mark.parametrize("name", ["plain", "a b+c/ü.txt", "many/of/them", "~tilde:colon=1&2"])
def test_a_signed_upload_and_download_pass(s3: Any, name: str) -> None:
    s3.put_object(Bucket="bucket", Key=name, Body=DATA, Metadata={"who": "ann"})
    answer = s3.get_object(Bucket="bucket", Key=name)
    assert answer["Body"].read() == DATA
    assert answer["Metadata"] == {"who": "ann"}
    assert s3.head_object(Bucket="bucket", Key=name)["ContentLength"] == len(DATA)


def test_a_signed_query_passes(s3: Any) -> None:
    for number in range(5):
        s3.put_object(Bucket="bucket", Key=f"list/{number} &=", Body=b"x")
    listed = s3.list_objects_v2(Bucket="bucket", Prefix="list/", Delimiter="/", MaxKeys=3)
    assert [item["Key"] for item in listed["Contents"]] == [f"list/{n} &=" for n in range(3)]
    s3.delete_object(Bucket="bucket", Key="list/0 &=")


def test_a_signed_upload_in_parts_passes(s3: Any) -> None:
    where = {"Bucket": "bucket", "Key": "parts"}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    parts = []
    for number, data in ((1, DATA), (2, b"the end")):
        sent = s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=data)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    assert s3.get_object(**where)["Body"].read() == DATA + b"the end"
    assert s3.get_object(**where, Range="bytes=10-19")["Body"].read() == DATA[10:20]


def test_a_wrong_secret_is_refused(url: str, key: dict[str, str]) -> None:
    wrong = key | {"SecretAccessKey": "wrong"}
    assert refused_by(client("s3", url, wrong)) == "SignatureDoesNotMatch"


def test_signature_under_a_mount_is_refused(url: str, key: dict[str, str]) -> None:
    assert refused_by(client("s3", f"{url}/s3", key)) == "SignatureDoesNotMatch"


def test_rclone_copies_to_a_bucket_and_back(
    relay: Server, url: str, key: dict[str, str], tmp_path: Path
) -> None:
    rclone = program("rclone")
    settings = {
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENDPOINT": url,
        "RCLONE_S3_REGION": "us-east-1",
        "RCLONE_S3_ACCESS_KEY_ID": key["AccessKeyId"],
        "RCLONE_S3_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
        "RCLONE_RETRIES": "1",
    }
    there, back = tmp_path / "there", tmp_path / "back"
    (there / "below").mkdir(parents=True)
    (there / "big").write_bytes(DATA)
    (there / "below" / "a file+1.txt").write_bytes(b"text")
    run(rclone, "sync", there, f":s3:bucket/{tmp_path.name}", home=tmp_path, environment=settings)
    run(rclone, "sync", f":s3:bucket/{tmp_path.name}", back, home=tmp_path, environment=settings)
    assert (back / "big").read_bytes() == DATA
    assert (back / "below" / "a file+1.txt").read_bytes() == b"text"
    run(rclone, "check", there, f":s3:bucket/{tmp_path.name}", home=tmp_path, environment=settings)
