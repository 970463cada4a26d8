//! The configuration files of the other proxies.

use serde_json::{Value, json};

use crate::lab::{Lab, SERVER_ADDRESS, SERVICE, nginx_preamble, nginx_temporary};

const HAPROXY_HEAD: &str = "global
  nbthread 1
  maxconn 8000
defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
";

fn alpn(http2: bool) -> &'static str {
    if http2 { "h2" } else { "http/1.1" }
}

pub(super) fn haproxy_outbound(lab: &Lab, http2: bool) -> String {
    format!(
        "{HAPROXY_HEAD}frontend client
  bind 127.0.0.1:15001
  default_backend mesh
backend mesh
  server peer {SERVER_ADDRESS}:15008 ssl ssl-min-ver TLSv1.3 alpn {alpn} verify required \
ca-file {authority} verifyhost inbound.bench sni str(inbound.bench) crt {own}
",
        alpn = alpn(http2),
        authority = lab.path("ca.pem").display(),
        own = lab.path("outbound.both.pem").display(),
    )
}

pub(super) fn haproxy_inbound(lab: &Lab, http2: bool) -> String {
    format!(
        "{HAPROXY_HEAD}frontend mesh
  bind {SERVER_ADDRESS}:15008 ssl ssl-min-ver TLSv1.3 alpn {alpn} verify required ca-file {authority} crt {own}
  default_backend app
backend app
  server app {SERVICE}
",
        alpn = alpn(http2),
        authority = lab.path("ca.pem").display(),
        own = lab.path("inbound.both.pem").display(),
    )
}

fn nginx_config(lab: &Lab, name: &str, next: &str, server: &str, proxy: &str) -> String {
    let directory = lab.path("");
    format!(
        "{preamble}
http {{
  {temporary}
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  upstream next {{ server {next}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }}
  server {{
    {server}
    location / {{
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      {proxy}
    }}
  }}
}}
",
        preamble = nginx_preamble(&directory, name),
        temporary = nginx_temporary(&directory),
    )
}

pub(super) fn nginx_outbound(lab: &Lab) -> String {
    let proxy = format!(
        "proxy_pass https://next; proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; \
proxy_ssl_name inbound.bench; proxy_ssl_server_name on; proxy_ssl_trusted_certificate {}; \
proxy_ssl_certificate {}; proxy_ssl_certificate_key {};",
        lab.path("ca.pem").display(),
        lab.path("outbound.pem").display(),
        lab.path("outbound.key").display(),
    );
    let next = format!("{SERVER_ADDRESS}:15008");
    nginx_config(
        lab,
        "out",
        &next,
        "listen 127.0.0.1:15001 backlog=4096;",
        &proxy,
    )
}

pub(super) fn nginx_inbound(lab: &Lab) -> String {
    let server = format!(
        "listen {SERVER_ADDRESS}:15008 ssl backlog=4096; ssl_protocols TLSv1.3; ssl_verify_client on; \
ssl_client_certificate {}; ssl_certificate {}; ssl_certificate_key {};",
        lab.path("ca.pem").display(),
        lab.path("inbound.pem").display(),
        lab.path("inbound.key").display(),
    );
    nginx_config(lab, "in", SERVICE, &server, "proxy_pass http://next;")
}

/// The part of an Envoy TLS context that both sides share.
fn envoy_tls(lab: &Lab, side: &str, peer: &str, http2: bool) -> Value {
    json!({
        "alpn_protocols": [alpn(http2)],
        // The maximum of a client is TLS 1.2 by default.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"filename": lab.path(&format!("{side}.pem"))},
            "private_key": {"filename": lab.path(&format!("{side}.key"))},
        }],
        "validation_context": {
            "trusted_ca": {"filename": lab.path("ca.pem")},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": peer}}],
        },
    })
}

fn envoy_socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn envoy_config(listener: Value, cluster: Value) -> String {
    json!({"static_resources": {"listeners": [listener], "clusters": [cluster]}}).to_string()
}

fn envoy_listener(address: &Value, transport: Option<Value>) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next"}}],
        }]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    let mut chain = json!({"filters": [{
        "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
    }]});
    if let Some(transport) = transport {
        chain["transport_socket"] = transport;
    }
    json!({"name": "in", "address": address, "filter_chains": [chain]})
}

fn envoy_cluster(address: &Value) -> Value {
    json!({
        "name": "next", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "next", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address}}]},
        ]},
    })
}

pub(super) fn envoy_outbound(lab: &Lab, http2: bool) -> String {
    let mut cluster = envoy_cluster(&envoy_socket(SERVER_ADDRESS, 15008));
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "inbound.bench",
            "common_tls_context": envoy_tls(lab, "outbound", "inbound.bench", http2),
        },
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
    envoy_config(
        envoy_listener(&envoy_socket("127.0.0.1", 15001), None),
        cluster,
    )
}

pub(super) fn envoy_inbound(lab: &Lab, http2: bool) -> String {
    let transport = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": envoy_tls(lab, "inbound", "outbound.bench", http2),
        },
    });
    envoy_config(
        envoy_listener(&envoy_socket(SERVER_ADDRESS, 15008), Some(transport)),
        envoy_cluster(&envoy_socket(SERVER_ADDRESS, 8080)),
    )
}
