use super::super::Config;
use super::super::document::SourceFile;
use super::*;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: airflow, annotations: { sidewind.dev/https-redirect: \"true\" } }
spec:
  gatewayClassName: sidewind
  listeners:
    - { name: http, port: 80, protocol: HTTP }
    - name: https
      port: 443
      protocol: HTTPS
      hostname: \"*.example.com\"
      tls:
        certificateRefs: [{ name: web-tls }, { kind: Secret, name: second }]
        options: { sidewind.dev/hsts-max-age: 1h, sidewind.dev/tls-min-version: \"1.3\" }
    - { name: through, port: 8443, protocol: TLS, tls: { mode: Passthrough } }
";

const TLS_ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: { name: db, namespace: airflow }
spec:
  parentRefs: [{ name: web, sectionName: through }]
  hostnames: [db.example.com]
  rules: [{ backendRefs: [{ name: db, namespace: data, port: 5433 }, { name: old, port: 1, weight: 0 }] }]
";

fn parse(text: &str) -> Result<Config, super::super::ConfigErrors> {
    let (name, text) = ("mesh.yaml".to_owned(), text.to_owned());
    Config::parse(&[SourceFile { name, text }])
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://sidewind.local{path}")).unwrap()
}

#[test]
fn a_gateway_is_read_with_its_listeners_certificates_and_options() {
    let config = parse(GATEWAY).unwrap();
    let listeners = config.gateway_listeners(&id("/ns/airflow/sa/web"));
    let [http, https, through] = listeners.as_slice() else {
        panic!("{listeners:?}");
    };
    assert_eq!(http.protocol(), v1::GatewayProtocol::Http);
    assert_eq!(http.port, 80);
    let table = http.routes.as_ref().unwrap();
    let filters: Vec<_> = table.rules.iter().flat_map(|rule| &rule.filters).collect();
    let redirect = v1::RequestRedirect {
        scheme: "https".to_owned(),
        port: 443,
        status: 308,
        ..v1::RequestRedirect::default()
    };
    let redirect = v1::route_filter::Filter::Redirect(redirect);
    assert_eq!(
        filters,
        [&v1::RouteFilter {
            filter: Some(redirect)
        }]
    );
    assert!(https.routes.is_none() && through.routes.is_none());
    assert_eq!(https.protocol(), v1::GatewayProtocol::Https);
    assert_eq!(https.certificates, ["web-tls", "second"]);
    assert_eq!(https.hostname, "*.example.com");
    assert_eq!((https.hsts_seconds, https.tls13_only), (Some(3600), true));
    assert_eq!(https.gateway, "airflow/web");
    assert_eq!(through.protocol(), v1::GatewayProtocol::TlsPassthrough);
}

#[test]
fn a_gateway_is_served_by_the_identity_of_its_name_or_by_those_that_it_names() {
    let config = parse(GATEWAY).unwrap();
    for other in ["/ns/airflow/sa/other", "/ns/data/sa/web", "/web"] {
        assert!(config.gateway_listeners(&id(other)).is_empty(), "{other}");
    }
    let named = "sidewind.dev/spiffe-ids: \"spiffe://sidewind.local/edge/*, spiffe://sidewind.local/x\", sidewind.dev/https";
    let config = parse(&GATEWAY.replace("sidewind.dev/https", named)).unwrap();
    for (path, served) in [("/edge/1", 3), ("/x", 3), ("/ns/airflow/sa/web", 0)] {
        assert_eq!(config.gateway_listeners(&id(path)).len(), served, "{path}");
    }
}

#[test]
fn tls_routes_are_attached_to_the_listeners_that_take_them() {
    let config = parse(&format!("{GATEWAY}{TLS_ROUTE}")).unwrap();
    let listeners = config.gateway_listeners(&id("/ns/airflow/sa/web"));
    assert!(listeners[0].tls_routes.is_empty() && listeners[1].tls_routes.is_empty());
    let [route] = listeners[2].tls_routes.as_slice() else {
        panic!("{listeners:?}");
    };
    let backends: Vec<_> = route
        .backends
        .iter()
        .map(|b| (b.destination.as_str(), b.weight))
        .collect();
    assert_eq!(route.hostnames, ["db.example.com"]);
    assert_eq!(backends, [("db.data:5433", 1), ("old.airflow:1", 0)]);
}

#[test]
fn each_mistake_of_a_gateway_is_named_with_its_place_and_remedy() {
    let table = [
        (
            "gatewayClassName: sidewind",
            "gatewayClassName: nginx",
            "mesh.yaml:5:21: spec.gatewayClassName: must be sidewind",
        ),
        (
            "annotations: { sidewind.dev/https-redirect: \"true\" }",
            "annotations: { sidewind.dev/https-redirect: \"yes\" }",
            "mesh.yaml:3:88: metadata.annotations.sidewind.dev/https-redirect: must be \"true\" or \"false\"",
        ),
        (
            "port: 80,",
            "port: 0,",
            "mesh.yaml:7:27: spec.listeners[0].port: must be a port from 1 to 65535",
        ),
        (
            "port: 80,",
            "port: 80, adress: x,",
            "mesh.yaml:7:31: spec.listeners[0].adress: unknown field",
        ),
        (
            "protocol: HTTP }",
            "protocol: UDP }",
            "mesh.yaml:7:41: spec.listeners[0].protocol: must be HTTP, HTTPS or TLS",
        ),
        (
            "port: 443",
            "port: 80",
            "mesh.yaml:10:17: spec.listeners[1].protocol: is another than that of listener http on the same port",
        ),
        (
            "name: https\n",
            "name: http\n",
            "mesh.yaml:8:13: spec.listeners[1].name: is another listener's too",
        ),
        (
            "\"*.example.com\"",
            "\"*\"",
            "mesh.yaml:11:17: spec.listeners[1].hostname: must be a host name in lower case",
        ),
        (
            "\"*.example.com\"",
            "10.0.0.1",
            "mesh.yaml:11:17: spec.listeners[1].hostname: must be a host name in lower case",
        ),
        (
            "[{ name: web-tls }, { kind: Secret, name: second }]",
            "[]",
            "mesh.yaml:13:26: spec.listeners[1].tls.certificateRefs: must be 1 to 64",
        ),
        (
            "{ name: web-tls }",
            "{ name: ../web }",
            "mesh.yaml:13:35: spec.listeners[1].tls.certificateRefs[0].name: must be of lower-case letters",
        ),
        (
            "{ name: web-tls }",
            "{ name: web-tls, namespace: other }",
            "mesh.yaml:13:55: spec.listeners[1].tls.certificateRefs[0].namespace: must be the gateway's own",
        ),
        (
            "kind: Secret",
            "kind: ConfigMap",
            "mesh.yaml:13:46: spec.listeners[1].tls.certificateRefs[1]: must be a Secret",
        ),
        (
            "hsts-max-age: 1h",
            "hsts-max-age: 1y",
            "mesh.yaml:14:47: spec.listeners[1].tls.options.sidewind.dev/hsts-max-age: \"1y\" is not a duration",
        ),
        (
            "hsts-max-age",
            "hsts",
            "mesh.yaml:14:39: spec.listeners[1].tls.options.sidewind.dev/hsts: is of option \"sidewind.dev/hsts\", which there is not",
        ),
        (
            "mode: Passthrough",
            "mode: Terminate",
            "mesh.yaml:15:46: spec.listeners[2].protocol: is for TLS that is passed through",
        ),
        (
            "mode: Passthrough",
            "mode: Passthrough, certificateRefs: [{ name: x }]",
            "mesh.yaml:15:94: spec.listeners[2].tls.certificateRefs: has no meaning where TLS is passed through",
        ),
        (
            "sectionName: through",
            "sectionName: https",
            "mesh.yaml:21:16: spec.parentRefs[0]: names listeners that take no TLSRoute of namespace airflow",
        ),
        (
            "sectionName: through",
            "sectionName: other",
            "mesh.yaml:21:16: spec.parentRefs[0]: names a listener that the Gateway does not have",
        ),
        (
            "[{ name: web, sectionName",
            "[{ name: api, sectionName",
            "mesh.yaml:21:16: spec.parentRefs[0]: names Gateway airflow/api, which no document describes",
        ),
        (
            "port: 5433",
            "port: 0",
            "mesh.yaml:23:62: spec.rules[0].backendRefs[0].port: must be a port from 1 to 65535",
        ),
    ];
    let right = format!("{GATEWAY}{TLS_ROUTE}");
    parse(&right).unwrap();
    let mut wrong = String::new();
    for (from, to, expected) in table {
        assert!(right.contains(from), "{from}");
        let text = match parse(&right.replacen(from, to, 1)) {
            Ok(_) => "all right".to_owned(),
            Err(errors) => errors.to_string(),
        };
        if !text.starts_with(expected) {
            wrong.push_str(&format!(
                "{to:?} is told as\n{text}\nand not as\n{expected}\n\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_route_for_hosts_that_no_listener_has_is_an_error_and_goes_to_those_alone_that_have_them() {
    let route = |parent: &str, host: &str| {
        format!(
            "{GATEWAY}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: api, namespace: airflow }}
spec:
  parentRefs: [{{ name: web{parent} }}]
  hostnames: [{host}]
  rules: [{{ backendRefs: [{{ name: api, port: 80 }}] }}]
"
        )
        .replace(
            "sidewind.dev/https-redirect: \"true\"",
            "sidewind.dev/https-redirect: \"false\"",
        )
    };
    let error = parse(&route(", sectionName: https", "api.example.org")).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("for other hosts than all of the route's"),
        "{error}"
    );
    let rules = |host: &str| -> Vec<usize> {
        let config = parse(&route("", host)).unwrap();
        let listeners = config.gateway_listeners(&id("/ns/airflow/sa/web"));
        let rules = listeners.iter().map(|listener| &listener.routes);
        rules
            .map(|table| table.as_ref().map_or(0, |it| it.rules.len()))
            .collect()
    };
    // Plain HTTP for any host, HTTPS for those below example.com, and TLS passed through.
    assert_eq!(rules("api.example.com"), [1, 1, 0]);
    assert_eq!(rules("api.example.org"), [1, 0, 0]);
}
