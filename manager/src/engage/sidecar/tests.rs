//! Pods before and after, and pods that get no agent.

use super::*;

const CA_PEM: &str = "-----BEGIN CERTIFICATE-----";

/// A Deployment's pod, as the API server has it when webhooks are asked.
fn pod(spec: &Value) -> Value {
    json!({
        "metadata": {
            "generateName": "web-5d4f-",
            "labels": {"app": "web", "pod-template-hash": "5d4f", "tp/inject": "enabled"},
        },
        "spec": spec,
    })
}

fn web() -> Value {
    pod(&json!({
        "restartPolicy": "Always",
        "containers": [{
            "name": "web",
            "image": "shop/web:1",
            "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}, {"containerPort": 9090, "name": "metrics"}],
            "env": [{"name": "MODE", "value": "live"}, {"name": "TP_AGENT_POD", "value": "mine"}],
            "envFrom": [{"configMapRef": {"name": "web"}}],
        }],
    }))
}

fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    pod.pointer_mut(parent).unwrap()[key] = value;
    pod
}

/// A Service of the pods `app: web`, with these ports.
fn service(ports: &Value) -> Service {
    let object = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}});
    serde_json::from_value(object).unwrap()
}

fn by_name(name: &str) -> Service {
    service(&json!([{"port": 80, "targetPort": name}]))
}

fn injection(pod: &Value, services: &[Service], form: Form) -> Result<Injection, Refusal> {
    let settings = AgentPod {
        image: "registry/tp-agent:1".to_owned(),
        pull_secrets: vec!["registry".to_owned()],
        manager_address: "tp-manager.tp-system.svc:7443".to_owned(),
        resources: json!({"requests": {"cpu": "10m"}}),
        ..AgentPod::default()
    };
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    inject(&pod, &Wanted { services, settings: &settings, ca_pem: CA_PEM, form })
}

/// The pod as the patch leaves it.
fn injected(pod: &Value, services: &[Service], form: Form) -> Value {
    let mut after = pod.clone();
    for operation in injection(pod, services, form).unwrap().operations {
        apply(&mut after, &operation);
    }
    // It is a pod still.
    serde_json::from_value::<Pod>(after.clone()).unwrap();
    after
}

/// What a JSON patch (RFC 6902) may do, as far as it is used here.
fn apply(document: &mut Value, operation: &Value) {
    let (parent, key) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    let parent = document.pointer_mut(parent).unwrap_or_else(|| panic!("nothing is at the parent: {operation}"));
    match (operation["op"].as_str().unwrap(), parent) {
        ("add", Value::Array(list)) => {
            assert_eq!(key, "-");
            list.push(operation["value"].clone());
        }
        ("add", parent) => parent[&key] = operation["value"].clone(),
        ("replace", parent) => *parent.get_mut(&key).unwrap() = operation["value"].clone(),
        ("remove", parent) => assert!(parent.as_object_mut().unwrap().remove(&key).is_some(), "{operation}"),
        (other, _) => panic!("{other}"),
    }
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    container["env"].as_array().unwrap().iter().find(|it| it["name"] == name)
}

fn agent_of(pod: &Value) -> &Value {
    let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.find(|it| it["name"] == agent::NAME).unwrap()
}

#[test]
fn the_agent_has_the_name_and_the_app_its_port() {
    let after = injected(&web(), &[by_name("http")], Form::Native);
    let agent = agent_of(&after);
    assert_eq!(agent["ports"], json!([{"name": "http", "containerPort": 7491, "protocol": "TCP"}]));
    assert_eq!(variable(agent, "TP_AGENT_PORTS").unwrap()["value"], "7491:8080/tcp/unknown");
    assert_eq!(variable(agent, "TP_AGENT_HEALTH_PORT").unwrap()["value"], "7490");
    let ip = &variable(agent, "TP_AGENT_POD_IP").unwrap()["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(ip, "status.podIP");
    let app = &after["spec"]["containers"][0]["ports"];
    assert_eq!(app, &json!([{"containerPort": 8080, "protocol": "TCP"}, {"containerPort": 9090, "name": "metrics"}]));
    assert_eq!(after["metadata"]["annotations"], json!({"tp/manager-ca": CA_PEM}));
}

#[test]
fn the_agent_has_the_environment_of_the_app_and_none_of_its_rights() {
    let after = injected(&web(), &[by_name("http")], Form::Native);
    let agent = agent_of(&after);
    assert_eq!(variable(agent, "TP_AGENT_CONTAINER").unwrap()["value"], "web");
    assert_eq!(variable(agent, "MODE").unwrap()["value"], "live");
    assert!(variable(agent, "TP_AGENT_POD").unwrap()["valueFrom"].is_object(), "the app's own says something else");
    assert_eq!(agent["envFrom"][0]["configMapRef"]["name"], "web");
    let expected = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": true,
        "runAsUser": 65_532,
        "runAsGroup": 65_532,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(agent["securityContext"], expected);
    let mounts = agent["volumeMounts"].as_array().unwrap();
    let token = mounts.iter().find(|it| it["mountPath"] == API_TOKEN).unwrap();
    assert_eq!(token["name"], "tp-ca", "there is no token for the API server");
    let audience = &after["spec"]["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"]["audience"];
    assert_eq!(audience, "tp-manager");
    assert_eq!(agent["resources"], json!({"requests": {"cpu": "10m"}}));
}

#[test]
fn it_is_a_sidecar_where_the_server_has_them_and_a_container_elsewhere() {
    let native = injected(&web(), &[by_name("http")], Form::Native);
    assert_eq!(native["spec"]["initContainers"][0]["restartPolicy"], "Always");
    assert_eq!(native["spec"]["containers"].as_array().unwrap().len(), 1);
    let beside = injected(&web(), &[by_name("http")], Form::Beside);
    assert_eq!(beside["spec"]["containers"][1]["name"], agent::NAME);
    assert!(beside["spec"]["containers"][1].get("restartPolicy").is_none());
    assert!(beside["spec"].get("initContainers").is_none());
    for (major, minor, form) in [
        ("1", "33", Form::Native),
        ("1", "34+", Form::Native),
        ("2", "0", Form::Native),
        ("1", "32", Form::Beside),
        ("1", "29", Form::Beside),
        ("", "", Form::Beside),
    ] {
        let version = Info { major: major.to_owned(), minor: minor.to_owned(), ..Info::default() };
        assert_eq!(Form::of_server(&version), form, "{major}.{minor}");
    }
}

#[test]
fn what_the_pod_has_stays_before_what_it_gets() {
    let mut before = with(web(), "/spec/initContainers", json!([{"name": "migrate"}]));
    before = with(before, "/spec/volumes", json!([{"name": "data", "emptyDir": {}}]));
    before = with(before, "/spec/imagePullSecrets", json!([{"name": "shop"}]));
    before = with(before, "/metadata/annotations", json!({"a/b": "c", "tp/not-injected": "once"}));
    let after = injected(&before, &[by_name("http")], Form::Native);
    let names = |field: &str| -> Vec<&str> {
        after["spec"][field].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect()
    };
    assert_eq!(names("initContainers"), ["migrate", "tp-agent"]);
    assert_eq!(names("volumes"), ["data", "tp-ca", "tp-token"]);
    assert_eq!(names("imagePullSecrets"), ["shop", "registry"]);
    assert_eq!(after["metadata"]["annotations"], json!({"a/b": "c", "tp/manager-ca": CA_PEM}));
}

#[test]
fn a_pod_that_has_an_agent_is_left_alone() {
    for form in [Form::Native, Form::Beside] {
        let once = injected(&web(), &[by_name("http")], form);
        assert_eq!(injection(&once, &[by_name("http")], form), Ok(Injection::default()));
        // Whatever has become of its Services.
        assert_eq!(injection(&once, &[], form), Ok(Injection::default()));
    }
}

#[test]
fn probes_and_hooks_that_name_a_port_of_the_agents_keep_finding_the_app() {
    let mut before = web();
    let probes = [
        ("livenessProbe", "httpGet", json!("http"), json!(8080)),
        ("readinessProbe", "tcpSocket", json!("http"), json!(8080)),
        ("startupProbe", "httpGet", json!("metrics"), json!("metrics")),
    ];
    for (probe, action, port, _) in &probes {
        before["spec"]["containers"][0][probe] = json!({*action: {"port": port}});
    }
    before["spec"]["containers"][0]["lifecycle"] = json!({
        "preStop": {"httpGet": {"path": "/drain", "port": "http"}},
        "postStart": {"httpGet": {"port": 8080}},
    });
    let after = injected(&before, &[by_name("http")], Form::Native);
    let app = &after["spec"]["containers"][0];
    for (probe, action, _, port) in &probes {
        assert_eq!(app[probe][action]["port"], *port, "{probe}");
    }
    assert_eq!(app["lifecycle"]["preStop"]["httpGet"], json!({"path": "/drain", "port": 8080}));
    assert_eq!(app["lifecycle"]["postStart"]["httpGet"]["port"], 8080);
}

#[test]
fn ports_are_those_that_services_name_or_that_the_annotation_names() {
    let several = pod(&json!({
        "initContainers": [{"name": "mesh", "restartPolicy": "Always", "ports": [{"containerPort": 7491}]}],
        "containers": [
            {"name": "web", "ports": [
                {"containerPort": 8080, "name": "http"},
                {"containerPort": 8080, "name": "web"},
                {"containerPort": 7490, "name": "admin"},
            ]},
            {"name": "dns", "ports": [
                {"containerPort": 53, "name": "dns", "protocol": "UDP"},
                {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
            ]},
            {"name": "other", "ports": [{"containerPort": 8081, "name": "http"}]},
        ],
    }));
    let http = |name: &str| service(&json!([{"port": 80, "targetPort": name, "name": "http"}]));
    let dns =
        service(&json!([{"port": 53, "targetPort": "dns", "protocol": "UDP"}, {"port": 53, "targetPort": "dns-tcp"}]));
    let asking = |names: &str| with(several.clone(), "/metadata/annotations", json!({"tp/inject-ports": names}));
    for (pod, services, expected) in [
        (several.clone(), vec![http("http")], "7493:8080/tcp/http"),
        // Two names of one port are one port.
        (several.clone(), vec![by_name("http"), http("web")], "7493:8080/tcp/http"),
        (several.clone(), vec![by_name("http"), http("http")], "7493:8080/tcp/http"),
        (several.clone(), vec![dns], "7493:53/udp/opaque,7494:53/tcp/unknown"),
        (asking("admin, dns"), vec![http("http")], "7493:7490/tcp/unknown,7494:53/udp/opaque"),
        (asking("http"), vec![http("http")], "7493:8080/tcp/http"),
    ] {
        let after = injected(&pod, &services, Form::Native);
        let agent = agent_of(&after);
        assert_eq!(variable(agent, "TP_AGENT_PORTS").unwrap()["value"], expected);
        assert_eq!(variable(agent, "TP_AGENT_HEALTH_PORT").unwrap()["value"], "7492", "7490 and 7491 are the pod's");
    }
    // Otherwise Services would find the second one, as they look at init containers last.
    let after = injected(&several, &[http("http")], Form::Native);
    assert!(after["spec"]["containers"][2]["ports"][0].get("name").is_none());
}

#[test]
fn what_comes_by_number_is_left_out_and_told() {
    let both = service(&json!([{"port": 80, "targetPort": "http"}, {"port": 90, "targetPort": 9090}]));
    let injection = injection(&web(), &[both], Form::Native).unwrap();
    assert_eq!(injection.left_out, ["a Service leads port 90 to port 9090 by number"]);
    assert!(!injection.operations.is_empty());
}

#[test]
fn pods_that_cannot_have_an_agent_are_told_why() {
    let numeric = service(&json!([{"port": 80, "targetPort": 8080}]));
    let numbers = Refusal::OnlyNumbers("a Service leads port 80 to port 8080 by number".to_owned());
    let asking = with(web(), "/metadata/annotations", json!({"tp/inject-ports": "grpc"}));
    let job = with(web(), "/spec/restartPolicy", json!("OnFailure"));
    for (pod, services, form, expected) in [
        (web(), vec![], Form::Native, Refusal::NoPort),
        (web(), vec![numeric.clone()], Form::Native, numbers),
        (asking, vec![by_name("http")], Form::Native, Refusal::UnknownPort("grpc".to_owned())),
        (with(web(), "/spec/hostNetwork", json!(true)), vec![by_name("http")], Form::Native, Refusal::HostNetwork),
        (with(web(), "/spec/os", json!({"name": "windows"})), vec![by_name("http")], Form::Native, Refusal::Windows),
        (
            with(web(), "/spec/volumes", json!([{"name": "tp-token", "emptyDir": {}}])),
            vec![by_name("http")],
            Form::Native,
            Refusal::VolumeName("tp-token"),
        ),
        (job.clone(), vec![by_name("http")], Form::Beside, Refusal::RunsToItsEnd("OnFailure".to_owned())),
    ] {
        assert_eq!(injection(&pod, &services, form), Err(expected));
    }
    assert!(injection(&job, &[by_name("http")], Form::Native).is_ok(), "a sidecar ends with the app");
}

#[test]
fn a_refusal_is_written_where_the_pods_owner_looks() {
    for before in [web(), with(web(), "/metadata/annotations", json!({"a": "b"}))] {
        let mut after = before.clone();
        for operation in not_injected(&serde_json::from_value(before.clone()).unwrap(), "why") {
            apply(&mut after, &operation);
        }
        assert_eq!(after["metadata"]["annotations"]["tp/not-injected"], "why");
        assert_eq!(after["metadata"]["annotations"].get("a"), before["metadata"]["annotations"].get("a"));
    }
}

#[test]
fn only_pods_with_the_label_ask_for_an_agent() {
    let asks = |pod: Value| is_asked_for(&serde_json::from_value(pod).unwrap());
    assert!(asks(web()));
    assert!(asks(with(web(), "/metadata/labels", json!({"tp/inject": "on-demand"}))));
    assert!(!asks(with(web(), "/metadata/labels", json!({"app": "web"}))));
    assert!(!asks(with(web(), "/metadata/labels", json!({"tp/inject": "disabled"}))));
    assert!(!asks(with(web(), "/metadata/annotations", json!({"kubernetes.io/config.mirror": "x"}))));
}

#[test]
fn a_pod_whose_agent_is_taken_out_is_as_before() {
    let services = [by_name("http"), by_name("metrics")];
    for form in [Form::Native, Form::Beside] {
        let mut pod: Pod = serde_json::from_value(injected(&web(), &services, form)).unwrap();
        let spec = pod.spec.as_mut().unwrap();
        take_out(spec);
        let before: PodSpec = serde_json::from_value(web()["spec"].clone()).unwrap();
        assert_eq!((&spec.containers, spec.volumes.as_deref()), (&before.containers, Some(&[][..])), "{form:?}");
        let once = spec.clone();
        take_out(spec);
        assert_eq!(*spec, once);
    }
}
