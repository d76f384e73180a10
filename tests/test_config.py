"""The options: every default, every option flipped and refused, names, cross checks, the table."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
import typing
import warnings
from fractions import Fraction
from ipaddress import IPv4Network, IPv6Network

import pytest
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.checks import parse_trusted_proxies
from geventws.config import (
    ClientConfig,
    ConnectionConfig,
    OptionRow,
    ServerConfig,
    list_limits,
    make_config,
    options_table,
)
from geventws.errors import ConfigurationError
from geventws.proxies import DEFAULT_TRUSTED_PROXIES

# Never started, so it owns no socket.
HTTP = WSGIServer(("127.0.0.1", 0), None)
HTTPS = WSGIServer(("127.0.0.1", 0), None)

CONNECTION_DEFAULTS = {
    "max_message_fragments": 65536,
    "max_queued_pongs": 1,
    "permessage_deflate": False,
    "slow_consumer": "close",
    "max_received_frame_size": 65536,
    "max_received_message_size": 1048576,
    "fragment_outgoing_messages": True,
    "fragmentation_threshold": 16384,
    "keepalive": True,
    "keepalive_interval": 20.0,
    "drop_connection_on_keepalive_timeout": True,
    "keepalive_grace_period": 10.0,
    "use_native_keepalive": False,
    "assemble_fragments": True,
    "close_timeout": 5.0,
    "disable_nagle_algorithm": True,
    "receive_high_water_mark": 1048576,
    "send_high_water_mark": 1048576,
    "send_timeout": 30.0,
}
SERVER_DEFAULTS = CONNECTION_DEFAULTS | {
    "max_queued_output": 268435456,
    "http_server": None,
    "auto_accept_connections": False,
    "ignore_x_forwarded_for": False,
    "parse_extensions": True,
    "parse_cookies": True,
    "path": None,
    "allowed_origins": None,
    "trusted_proxies": DEFAULT_TRUSTED_PROXIES,
    "max_connections": None,
    "max_connections_per_address": None,
    "max_pending_requests": 1024,
    "accept_timeout": 60.0,
    "header_timeout": 10.0,
    "max_head_size": 65536,
    "max_header_count": 100,
}
CLIENT_DEFAULTS = CONNECTION_DEFAULTS | {
    "max_received_frame_size": 1048576,
    "max_received_message_size": 8388608,
    "connect_timeout": 10.0,
}

SIZES = [
    "max_received_frame_size",
    "max_received_message_size",
    "fragmentation_threshold",
    "receive_high_water_mark",
    "send_high_water_mark",
]
FLAGS = sorted(
    {name for name, default in SERVER_DEFAULTS.items() if isinstance(default, bool)} - {"permessage_deflate"}
)
SIZES_OR_NONE = ["max_head_size", "max_queued_output"]
COUNTS = ["max_message_fragments", "max_queued_pongs"]
COUNTS_OR_NONE = ["max_connections", "max_connections_per_address", "max_pending_requests"]
TIMES = ["keepalive_interval", "keepalive_grace_period", "close_timeout"]
TIMES_OR_NONE = ["send_timeout", "accept_timeout", "header_timeout", "connect_timeout"]

SEED_NAMES = {
    "httpServer": "http_server",
    "maxReceivedFrameSize": "max_received_frame_size",
    "maxReceivedMessageSize": "max_received_message_size",
    "fragmentOutgoingMessages": "fragment_outgoing_messages",
    "fragmentationThreshold": "fragmentation_threshold",
    "keepaliveInterval": "keepalive_interval",
    "dropConnectionOnKeepaliveTimeout": "drop_connection_on_keepalive_timeout",
    "keepaliveGracePeriod": "keepalive_grace_period",
    "useNativeKeepalive": "use_native_keepalive",
    "assembleFragments": "assemble_fragments",
    "autoAcceptConnections": "auto_accept_connections",
    "closeTimeout": "close_timeout",
    "disableNagleAlgorithm": "disable_nagle_algorithm",
    "ignoreXForwardedFor": "ignore_x_forwarded_for",
    "parseExtensions": "parse_extensions",
    "parseCookies": "parse_cookies",
}


def values_of(config):
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}


def config_with(name, value):
    """Make the configuration that knows the option, with this value."""
    cls = ServerConfig if name in SERVER_DEFAULTS else ClientConfig
    return cls(**{name: value})


class TestDefaults:
    @pytest.mark.parametrize(
        ("cls", "defaults"),
        [
            pytest.param(ConnectionConfig, CONNECTION_DEFAULTS, id="connection"),
            pytest.param(ServerConfig, SERVER_DEFAULTS, id="server"),
            pytest.param(ClientConfig, CLIENT_DEFAULTS, id="client"),
        ],
    )
    def test_defaults_are_those_of_the_contract(self, cls, defaults):
        assert values_of(cls()) == defaults

    def test_proxies_of_ones_own_are_trusted(self):
        networks = ServerConfig().trusted_networks
        assert IPv4Network("10.0.0.0/8") in networks
        assert IPv6Network("::1/128") in networks


class TestAccepted:
    @pytest.mark.parametrize("name", FLAGS)
    def test_flag_can_be_flipped(self, name):
        flipped = not SERVER_DEFAULTS[name]
        assert getattr(config_with(name, flipped), name) is flipped

    @pytest.mark.parametrize("name", SIZES + SIZES_OR_NONE)
    @pytest.mark.parametrize("value", [pytest.param(1, id="least"), pytest.param(sys.maxsize, id="greatest")])
    def test_size(self, name, value):
        assert getattr(config_with(name, value), name) == value

    @pytest.mark.parametrize("name", SIZES_OR_NONE)
    def test_size_may_be_none(self, name):
        assert getattr(config_with(name, None), name) is None

    @pytest.mark.parametrize("value", [1, 100])
    def test_header_count(self, value):
        assert ServerConfig(max_header_count=value).max_header_count == value

    @pytest.mark.parametrize("name", COUNTS_OR_NONE)
    @pytest.mark.parametrize("value", [1, sys.maxsize, None])
    def test_count(self, name, value):
        assert getattr(config_with(name, value), name) == value

    @pytest.mark.parametrize("name", TIMES + TIMES_OR_NONE)
    @pytest.mark.parametrize(
        "value", [pytest.param(0.25, id="float"), pytest.param(3, id="int"), pytest.param(3600, id="an-hour")]
    )
    def test_time_is_kept_as_a_float(self, name, value):
        kept = getattr(config_with(name, value), name)
        assert kept == value
        assert type(kept) is float

    @pytest.mark.parametrize("name", TIMES_OR_NONE)
    def test_time_may_be_none(self, name):
        assert getattr(config_with(name, None), name) is None

    @pytest.mark.parametrize(
        ("name", "value", "kept"),
        [
            pytest.param("http_server", HTTP, HTTP, id="one-http-server"),
            pytest.param("http_server", [HTTP, HTTPS], (HTTP, HTTPS), id="two-http-servers"),
            pytest.param("http_server", [], (), id="no-http-server-before-mount"),
            pytest.param("path", "/", "/", id="root"),
            pytest.param("path", "/chat/%C3%A9", "/chat/%C3%A9", id="path"),
            pytest.param("allowed_origins", [], (), id="no-origin-at-all"),
            pytest.param("allowed_origins", iter(["null"]), ("null",), id="iterator"),
            pytest.param("trusted_proxies", None, None, id="any-proxy"),
            pytest.param("trusted_proxies", [], (), id="no-proxy"),
            pytest.param("trusted_proxies", ["192.0.2.1"], ("192.0.2.1",), id="address"),
            pytest.param("trusted_proxies", {"2001:db8::/32"}, ("2001:db8::/32",), id="network"),
        ],
    )
    def test_other_options(self, name, value, kept):
        assert getattr(ServerConfig(**{name: value}), name) == kept

    @pytest.mark.parametrize(
        "origin",
        [
            "https://example.com",
            "http://localhost:8000",
            "http://example.com:443",
            "https://example.com:80",
            "http://192.0.2.1:65535",
            "http://[2001:db8::1]:8080",
            "http://[::1]",
            "https://xn--bcher-kva.example",
            "http://under_score.example",
            "chrome-extension://abcdefghijklmnop",
            "null",
            "file://",
            None,
        ],
    )
    def test_origin(self, origin):
        assert ServerConfig(allowed_origins=[origin]).allowed_origins == (origin,)

    def test_every_option_is_met(self):
        others = {"http_server", "path", "allowed_origins", "trusted_proxies", "permessage_deflate", "slow_consumer"}
        others.add("max_header_count")
        assert {
            *FLAGS,
            *SIZES,
            *SIZES_OR_NONE,
            *COUNTS,
            *COUNTS_OR_NONE,
            *TIMES,
            *TIMES_OR_NONE,
            *others,
        } == SERVER_DEFAULTS.keys() | CLIENT_DEFAULTS.keys()


class TestRefused:
    @pytest.mark.parametrize("name", FLAGS)
    @pytest.mark.parametrize("value", [1, 0, None, "yes"])
    def test_flag(self, name, value):
        with pytest.raises(ConfigurationError) as caught:
            config_with(name, value)
        assert str(caught.value) == f"{name} must be True or False, not {value!r}"

    @pytest.mark.parametrize("name", SIZES)
    @pytest.mark.parametrize("value", [0, -1, True, 1024.0, "1024", None, sys.maxsize + 1])
    def test_size(self, name, value):
        with pytest.raises(ConfigurationError) as caught:
            config_with(name, value)
        assert str(caught.value) == f"{name} must be an int from 1 to {sys.maxsize}, in octets, not {value!r}"

    @pytest.mark.parametrize("name", SIZES_OR_NONE)
    @pytest.mark.parametrize("value", [0, -1, True, 1024.0, "1024", sys.maxsize + 1])
    def test_size_or_none(self, name, value):
        with pytest.raises(ConfigurationError) as caught:
            config_with(name, value)
        assert str(caught.value) == f"{name} must be an int from 1 to {sys.maxsize}, in octets, or None, not {value!r}"

    @pytest.mark.parametrize("name", COUNTS)
    @pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None, sys.maxsize + 1])
    def test_count(self, name, value):
        with pytest.raises(ConfigurationError) as caught:
            config_with(name, value)
        assert str(caught.value) == f"{name} must be an int from 1 to {sys.maxsize}, not {value!r}"

    @pytest.mark.parametrize("value", [0, 101, True, 50.0, "50", None])
    def test_header_count(self, value):
        with pytest.raises(ConfigurationError) as caught:
            ServerConfig(max_header_count=value)
        assert str(caught.value) == f"max_header_count must be an int from 1 to 100, not {value!r}"

    @pytest.mark.parametrize("name", COUNTS_OR_NONE)
    @pytest.mark.parametrize("value", [0, -1, True, 5.0, "5", sys.maxsize + 1])
    def test_count_or_none(self, name, value):
        with pytest.raises(ConfigurationError) as caught:
            config_with(name, value)
        assert str(caught.value) == f"{name} must be an int from 1 to {sys.maxsize}, or None, not {value!r}"

    @pytest.mark.parametrize("name", TIMES + TIMES_OR_NONE)
    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(0, id="zero"),
            pytest.param(-0.5, id="negative"),
            pytest.param(True, id="bool"),
            pytest.param(float("nan"), id="nan"),
            pytest.param(float("inf"), id="infinity"),
            pytest.param(10**400, id="beyond-float"),
            pytest.param("5", id="str"),
            pytest.param(Fraction(1, 2), id="fraction"),
        ],
    )
    def test_time(self, name, value):
        with pytest.raises(ConfigurationError) as caught:
            config_with(name, value)
        or_none = ", or None" if name in TIMES_OR_NONE else ""
        assert str(caught.value) == f"{name} must be a finite number of seconds above 0{or_none}, not {value!r}"

    @pytest.mark.parametrize("name", TIMES)
    def test_time_that_cannot_be_none(self, name):
        with pytest.raises(ConfigurationError, match=f"{name} must be .* above 0, not None"):
            config_with(name, None)

    @pytest.mark.parametrize(
        ("name", "value", "rule"),
        [
            pytest.param("http_server", "localhost:8000", "WSGIServer", id="http-server-str"),
            pytest.param("http_server", 8000, "WSGIServer", id="http-server-int"),
            pytest.param("http_server", StreamServer(("127.0.0.1", 0), print), "WSGIServer", id="stream-server"),
            pytest.param("http_server", [HTTP, None], "WSGIServer", id="none-among-http-servers"),
            pytest.param("permessage_deflate", 1, "True, False or a DeflateOptions", id="deflate-int"),
            pytest.param("permessage_deflate", "yes", "True, False or a DeflateOptions", id="deflate-str"),
            pytest.param("permessage_deflate", None, "True, False or a DeflateOptions", id="deflate-none"),
            pytest.param("slow_consumer", "wait", "one of 'close', 'drop_newest', 'drop_oldest'", id="unknown-policy"),
            pytest.param("slow_consumer", None, "one of 'close', 'drop_newest', 'drop_oldest'", id="no-policy"),
            pytest.param("path", "", 'starts with "/"', id="path-empty"),
            pytest.param("path", "chat", 'starts with "/"', id="path-relative"),
            pytest.param("path", "/chat?room=1", 'holds no "[?]"', id="path-with-query"),
            pytest.param("path", b"/chat", "a str", id="path-bytes"),
            pytest.param("allowed_origins", "https://example.com", "an iterable of", id="origins-str"),
            pytest.param("allowed_origins", 443, "an iterable of", id="origins-int"),
            pytest.param("allowed_origins", [b"https://example.com"], "not b'https:", id="origin-bytes"),
            pytest.param("trusted_proxies", "10.0.0.0/8", "an iterable of", id="proxies-str"),
            pytest.param("trusted_proxies", 10, "an iterable of", id="proxies-int"),
            pytest.param("trusted_proxies", ["10.0.0.0/8", 10], "an iterable of str", id="proxy-int"),
            pytest.param("trusted_proxies", ["localhost"], "'localhost'", id="proxy-name"),
            pytest.param("trusted_proxies", ["10.0.0.1/8"], "host bits", id="proxy-host-bits"),
        ],
    )
    def test_other_options(self, name, value, rule):
        with pytest.raises(ConfigurationError, match=f"^{name} must .*{rule}"):
            ServerConfig(**{name: value})

    @pytest.mark.parametrize(
        "origin",
        [
            pytest.param("", id="empty"),
            pytest.param("example.com", id="no-scheme"),
            pytest.param("HTTPS://example.com", id="upper-case-scheme"),
            pytest.param("https://Example.com", id="upper-case-host"),
            pytest.param("https://", id="no-host"),
            pytest.param("https://example.com/", id="slash"),
            pytest.param("https://example.com/chat", id="path"),
            pytest.param("https://example.com?x", id="query"),
            pytest.param("https://user@example.com", id="user"),
            pytest.param("https://*.example.com", id="wildcard"),
            pytest.param("*", id="star"),
            pytest.param("https://example.com:", id="empty-port"),
            pytest.param("https://example.com:443", id="default-port-of-https"),
            pytest.param("http://example.com:80", id="default-port-of-http"),
            pytest.param("https://example.com:65536", id="port-too-high"),
            pytest.param("https://example.com:0443", id="port-with-zero"),
            pytest.param("https://example.com\n", id="newline"),
            pytest.param("https://bücher.example", id="not-ascii"),
            pytest.param("https://a.example https://b.example", id="two-in-one"),
            pytest.param("Null", id="null-in-upper-case"),
        ],
    )
    def test_origin(self, origin):
        with pytest.raises(ConfigurationError) as caught:
            ServerConfig(allowed_origins=["https://example.com", origin])
        assert str(caught.value).startswith("allowed_origins must hold serialised origins (scheme://host[:port]")
        assert str(caught.value).endswith(f"not {origin!r}")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            pytest.param("path", "/chat", id="path"),
            pytest.param("allowed_origins", ["https://example.com"], id="allowed-origins"),
            pytest.param("allowed_origins", [], id="no-origin-allowed"),
        ],
    )
    def test_auto_accept_goes_with_no_condition(self, name, value):
        with pytest.raises(ConfigurationError, match=f"auto_accept_connections .* does not go with {name}"):
            ServerConfig(auto_accept_connections=True, **{name: value})

    @settings(deadline=None)
    @given(
        name=st.sampled_from(sorted(SERVER_DEFAULTS)),
        value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.none()),
    )
    def test_any_value_is_kept_or_refused_by_name(self, name, value):
        refusal = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                kept = getattr(ServerConfig(**{name: value}), name)
            except ConfigurationError as error:
                refusal = str(error)
        if refusal is None:
            assert kept == (tuple(value) if isinstance(value, list) else value)
        else:
            assert refusal.startswith(f"{name} must ")


class TestLongTimes:
    def test_one_warning_for_all_of_them_at_the_line_of_the_caller(self):
        with pytest.warns(UserWarning, match="seconds, not milliseconds") as caught:
            config = ServerConfig(keepalive_interval=20000, close_timeout=5000, accept_timeout=3600)
        assert config.keepalive_interval == 20000.0
        (warning,) = caught
        assert str(warning.message).startswith("keepalive_interval=20000.0, close_timeout=5000.0: ")
        assert warning.filename == __file__

    def test_through_make_config(self):
        with pytest.warns(UserWarning, match=r"send_timeout=3600\.1: ") as caught:
            make_config(ServerConfig, {"send_timeout": 3600.1})
        (warning,) = caught
        assert warning.filename == __file__


class TestObject:
    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            ServerConfig().keepalive = False

    def test_has_no_dict(self):
        assert not hasattr(ServerConfig(), "__dict__")

    def test_takes_no_positional_value(self):
        with pytest.raises(TypeError):
            ServerConfig(65536)

    def test_replace_checks_again(self):
        with pytest.raises(ConfigurationError, match="path"):
            dataclasses.replace(ServerConfig(path="/chat"), path="chat")

    def test_equality_and_hash_follow_the_values(self):
        one = ServerConfig(allowed_origins=["null"], keepalive_interval=5)
        same = ServerConfig(allowed_origins=("null",), keepalive_interval=5.0)
        assert one == same
        assert hash(one) == hash(same)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
    def test_can_be_copied(self, duplicate):
        config = ClientConfig(connect_timeout=None)
        assert duplicate(config) == config

    def test_networks_are_parsed_once(self):
        proxies = ["192.0.2.0/24", "2001:db8::1"]
        networks = ServerConfig(trusted_proxies=proxies).trusted_networks
        assert networks == (IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::1/128"))
        assert ServerConfig(trusted_proxies=proxies).trusted_networks is networks
        assert parse_trusted_proxies(("192.0.2.0/24", "2001:db8::1")) is networks

    def test_any_proxy_has_no_networks(self):
        assert ServerConfig(trusted_proxies=None).trusted_networks is None


class TestMakeConfig:
    def test_nothing_given(self):
        assert make_config(ServerConfig) == ServerConfig()

    def test_options_alone(self):
        assert make_config(ClientConfig, None, {"keepalive": False}) == ClientConfig(keepalive=False)

    def test_options_override_a_mapping(self):
        given = {"keepalive": False, "path": "/a"}
        assert make_config(ServerConfig, given, {"path": "/b"}) == ServerConfig(keepalive=False, path="/b")
        assert given == {"keepalive": False, "path": "/a"}

    def test_instance_is_returned_as_it_is(self):
        config = ServerConfig(path="/a")
        assert make_config(ServerConfig, config) is config
        assert make_config(ServerConfig, config, {}) is config

    def test_options_override_an_instance(self):
        config = ServerConfig(path="/a", keepalive=False)
        assert make_config(ServerConfig, config, {"path": "/b"}) == ServerConfig(path="/b", keepalive=False)
        assert config.path == "/a"

    def test_subclass_stays_what_it_is(self):
        class ChatConfig(ServerConfig):
            pass

        assert type(make_config(ServerConfig, ChatConfig(), {"path": "/chat"})) is ChatConfig

    @pytest.mark.parametrize(
        "config",
        [
            pytest.param(HTTP, id="http-server"),
            pytest.param(8000, id="int"),
            pytest.param([("path", "/")], id="pairs"),
            pytest.param(ClientConfig(), id="config-of-the-other-side"),
        ],
    )
    def test_something_else_as_config(self, config):
        with pytest.raises(ConfigurationError, match=r"^config must be a ServerConfig, a mapping or None, not "):
            make_config(ServerConfig, config)

    @pytest.mark.parametrize(
        ("config", "options"),
        [
            pytest.param({"close_timeout": -1}, {}, id="mapping"),
            pytest.param(None, {"close_timeout": -1}, id="options"),
            pytest.param(ServerConfig(), {"close_timeout": -1}, id="instance-and-options"),
        ],
    )
    def test_value_is_checked(self, config, options):
        with pytest.raises(ConfigurationError, match=r"^close_timeout must be .*, not -1$"):
            make_config(ServerConfig, config, options)

    def test_cross_check_sees_both_sources(self):
        with pytest.raises(ConfigurationError, match="does not go with path"):
            make_config(ServerConfig, ServerConfig(path="/chat"), {"auto_accept_connections": True})


class TestUnknownNames:
    @pytest.mark.parametrize(("seed", "name"), SEED_NAMES.items())
    def test_seed_name_leads_to_ours(self, seed, name):
        with pytest.raises(ConfigurationError, match=f"^{seed} is called {name} here"):
            make_config(ServerConfig, {seed: 1})

    @pytest.mark.parametrize(
        ("seed", "message"),
        [
            pytest.param(
                "keepaliveInterval", "keepaliveInterval is called keepalive_interval here, in seconds", id="s"
            ),
            pytest.param(
                "fragmentationThreshold",
                "fragmentationThreshold is called fragmentation_threshold here, in octets",
                id="octets",
            ),
            pytest.param("parseCookies", "parseCookies is called parse_cookies here", id="no-unit"),
        ],
    )
    def test_seed_name_comes_with_its_unit(self, seed, message):
        with pytest.raises(ConfigurationError) as caught:
            make_config(ServerConfig, None, {seed: 5000})
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            pytest.param("keep_alive_interval", "keepalive_interval", id="spelling"),
            pytest.param("allowed_origin", "allowed_origins", id="singular"),
            pytest.param("keepAliveInterval", "keepalive_interval", id="camel-case"),
            pytest.param("trustedProxies", "trusted_proxies", id="camel-case-of-ours"),
        ],
    )
    def test_near_miss_gets_a_suggestion(self, given, meant):
        with pytest.raises(ConfigurationError) as caught:
            make_config(ServerConfig, ServerConfig(), {given: 1})
        assert str(caught.value) == f"ServerConfig has no option {given!r}; did you mean {meant}?"

    @pytest.mark.parametrize("name", ["xyzzy", 5, None])
    def test_name_like_none_of_ours(self, name):
        with pytest.raises(ConfigurationError) as caught:
            make_config(ServerConfig, {name: 1})
        assert str(caught.value) == f"ServerConfig has no option {name!r}"

    def test_option_of_the_other_side(self):
        with pytest.raises(ConfigurationError, match=r"^ClientConfig has no option 'accept_timeout'"):
            make_config(ClientConfig, {"accept_timeout": 5})


class TestLimits:
    def test_they_are_those_that_something_becomes_of(self):
        limits = list_limits()
        assert {"max_received_message_size", "send_timeout", "allowed_origins", "receive_high_water_mark"} <= {*limits}
        assert not {"keepalive_interval", "fragmentation_threshold", "path", "trusted_proxies"} & {*limits}

    def test_of_a_client(self):
        limits = list_limits(ClientConfig)
        assert "connect_timeout" in limits
        assert "accept_timeout" not in limits

    @pytest.mark.parametrize("cls", [ServerConfig, ClientConfig])
    def test_each_says_what_becomes_of_it(self, cls):
        rows = {row.name: row for row in options_table(cls)}
        assert all(len(rows[name].meaning.split(". ")) > 1 for name in list_limits(cls))


class TestTable:
    @pytest.mark.parametrize("cls", [ServerConfig, ClientConfig])
    def test_one_complete_row_for_each_option(self, cls):
        rows = options_table(cls)
        assert [row.name for row in rows] == [item.name for item in dataclasses.fields(cls)]
        assert all(row.meaning.endswith(".") and row.default and row.unit in {"s", "octets", ""} for row in rows)

    def test_rows(self):
        rows = {row.name: row for row in options_table()}
        assert rows["max_received_message_size"] == OptionRow(
            "maxReceivedMessageSize",
            "max_received_message_size",
            "1048576",
            "octets",
            "The largest message that is received, whether it comes in one frame or in many. "
            "The connection fails with 1009.",
        )
        assert rows["path"][:4] == ("—", "path", "None", "")
        assert rows["keepalive"][:4] == ("keepalive", "keepalive", "True", "")
        assert rows["trusted_proxies"].default.startswith("127.0.0.0/8, ::1/128, ")

    def test_client_defaults(self):
        rows = {row.name: row for row in options_table(ClientConfig)}
        assert rows["max_received_frame_size"][:4] == (
            "maxReceivedFrameSize",
            "max_received_frame_size",
            "1048576",
            "octets",
        )

    def test_seed_names(self):
        named = {row.seed: row.name for row in options_table() if row.seed != "—"}
        assert named == SEED_NAMES | {"keepalive": "keepalive"}

    def test_types_can_be_read_at_run_time(self):
        hints = typing.get_type_hints(ServerConfig)
        assert hints["keepalive"] is bool
        assert hints["send_timeout"] == (float | None)
