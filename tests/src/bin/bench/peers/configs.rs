//! The configuration files of the other proxies.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::lab::{Lab, SERVER_ADDRESS, nginx_preamble, nginx_temporary};
use crate::service::Service;

const HAPROXY_HEAD: &str = "global
  nbthread 1
  maxconn 9900
defaults
  http-reuse always
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
";

fn alpn(http2: bool) -> &'static str {
    if http2 { "h2" } else { "http/1.1" }
}

fn haproxy_mode(service: Service) -> &'static str {
    if service.is_opaque() { "tcp" } else { "http" }
}

pub(super) fn haproxy_outbound(lab: &Lab, http2: bool, services: &[Service]) -> String {
    let mut text = HAPROXY_HEAD.to_owned();
    for service in services {
        let alpn = match service.is_opaque() {
            true => String::new(),
            false => format!("alpn {}", alpn(http2)),
        };
        let _ = write!(
            text,
            "listen {service:?}
  mode {mode}
  bind {listen} backlog 8192
  server peer {mesh} ssl ssl-min-ver TLSv1.3 {alpn} verify required \
ca-file {authority} verifyhost inbound.bench sni str(inbound.bench) crt {own}
",
            mode = haproxy_mode(*service),
            listen = service.outbound_listen(),
            mesh = service.mesh_address(),
            authority = lab.path("ca.pem").display(),
            own = lab.path("outbound.both.pem").display(),
        );
    }
    text
}

pub(super) fn haproxy_inbound(lab: &Lab, http2: bool, services: &[Service]) -> String {
    let mut text = HAPROXY_HEAD.to_owned();
    for service in services {
        let alpn = match service.is_opaque() {
            true => String::new(),
            false => format!("alpn {}", alpn(http2)),
        };
        let _ = write!(
            text,
            "listen {service:?}
  mode {mode}
  bind {mesh} backlog 8192 ssl ssl-min-ver TLSv1.3 {alpn} verify required ca-file {authority} crt {own}
  server app {address} {proto}
",
            mode = haproxy_mode(*service),
            mesh = service.mesh_address(),
            address = service.address(),
            proto = if service.is_http2() { "proto h2" } else { "" },
            authority = lab.path("ca.pem").display(),
            own = lab.path("inbound.both.pem").display(),
        );
    }
    text
}

fn nginx_config(lab: &Lab, name: &str, server: &str, streams: &str) -> String {
    let directory = lab.path("");
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
{preamble}
stream {{ {streams} }}
http {{
  {temporary}
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
{server}
}}
",
        preamble = nginx_preamble(&directory, name),
        temporary = nginx_temporary(&directory),
    )
}

/// One HTTP server, which sends on to `next` as `proxy` says.
fn nginx_http(listen: &str, next: &str, proxy: &str) -> String {
    format!(
        "  upstream next {{ server {next}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }}
  server {{
    {listen}
    location / {{
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_max_temp_file_size 0;
      {proxy}
    }}
  }}
"
    )
}

pub(super) fn nginx_outbound(lab: &Lab, services: &[Service]) -> String {
    let tls = format!(
        "proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; \
proxy_ssl_name inbound.bench; proxy_ssl_server_name on; proxy_ssl_session_reuse off; proxy_ssl_trusted_certificate {}; \
proxy_ssl_certificate {}; proxy_ssl_certificate_key {};",
        lab.path("ca.pem").display(),
        lab.path("outbound.pem").display(),
        lab.path("outbound.key").display(),
    );
    let (mut server, mut streams) = (String::new(), String::new());
    for service in services {
        let listen = format!("listen {} backlog=8192;", service.outbound_listen());
        let mesh = service.mesh_address();
        if service.is_opaque() {
            let _ = writeln!(
                streams,
                "server {{ {listen} proxy_timeout 1h; proxy_ssl on; {tls} proxy_pass {mesh}; }}"
            );
        } else {
            let proxy = format!("proxy_pass https://next; {tls}");
            server.push_str(&nginx_http(&listen, &mesh, &proxy));
        }
    }
    nginx_config(lab, "out", &server, &streams)
}

pub(super) fn nginx_inbound(lab: &Lab, services: &[Service]) -> String {
    let tls = format!(
        "ssl_protocols TLSv1.3; ssl_verify_client on; \
ssl_client_certificate {}; ssl_certificate {}; ssl_certificate_key {};",
        lab.path("ca.pem").display(),
        lab.path("inbound.pem").display(),
        lab.path("inbound.key").display(),
    );
    let (mut server, mut streams) = (String::new(), String::new());
    for service in services {
        let listen = format!("listen {} ssl backlog=8192; {tls}", service.mesh_address());
        let address = service.address();
        if service.is_opaque() {
            let _ = writeln!(
                streams,
                "server {{ {listen} proxy_timeout 1h; proxy_pass {address}; }}"
            );
        } else {
            server.push_str(&nginx_http(&listen, &address, "proxy_pass http://next;"));
        }
    }
    nginx_config(lab, "in", &server, &streams)
}

/// The part of an Envoy TLS context that both sides share.
fn envoy_tls(lab: &Lab, side: &str, peer: &str, alpn: Option<&str>) -> Value {
    json!({
        "alpn_protocols": alpn.into_iter().collect::<Vec<_>>(),
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

fn envoy_config(listeners: &[Value], clusters: &[Value]) -> String {
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string()
}

fn envoy_listener(service: Service, address: &Value, transport: Option<Value>) -> Value {
    let name = format!("{service:?}");
    let filter = if service.is_opaque() {
        json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name, "cluster": name, "idle_timeout": "0s",
        }})
    } else {
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}],
            }]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        }})
    };
    let mut chain = json!({"filters": [filter]});
    if let Some(transport) = transport {
        chain["transport_socket"] = transport;
    }
    json!({"name": name, "address": address, "filter_chains": [chain], "tcp_backlog_size": 8192})
}

fn envoy_cluster(service: Service, address: &Value, http2: bool) -> Value {
    let name = format!("{service:?}");
    let most = json!(30000);
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": most, "max_pending_requests": most, "max_requests": most,
        }]},
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address}}]},
        ]},
    });
    if http2 && !service.is_opaque() {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
    cluster
}

pub(super) fn envoy_outbound(lab: &Lab, http2: bool, services: &[Service]) -> String {
    let side = |service: &Service| {
        let alpn = (!service.is_opaque()).then(|| alpn(http2));
        let mesh = envoy_socket(SERVER_ADDRESS, service.mesh_port());
        let mut cluster = envoy_cluster(*service, &mesh, http2);
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "inbound.bench", "max_session_keys": 0,
                "common_tls_context": envoy_tls(lab, "outbound", "inbound.bench", alpn),
            },
        });
        let listen = envoy_socket("127.0.0.1", service.outbound_port());
        (envoy_listener(*service, &listen, None), cluster)
    };
    let (listeners, clusters): (Vec<_>, Vec<_>) = services.iter().map(side).unzip();
    envoy_config(&listeners, &clusters)
}

pub(super) fn envoy_inbound(lab: &Lab, http2: bool, services: &[Service]) -> String {
    let side = |service: &Service| {
        let alpn = (!service.is_opaque()).then(|| alpn(http2));
        let transport = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": envoy_tls(lab, "inbound", "outbound.bench", alpn),
            },
        });
        let listen = envoy_socket(SERVER_ADDRESS, service.mesh_port());
        let app = envoy_socket(SERVER_ADDRESS, service.port());
        (
            envoy_listener(*service, &listen, Some(transport)),
            envoy_cluster(*service, &app, service.is_http2()),
        )
    };
    let (listeners, clusters): (Vec<_>, Vec<_>) = services.iter().map(side).unzip();
    envoy_config(&listeners, &clusters)
}
