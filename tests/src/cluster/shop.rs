//! The manifests of the pods that the checks and the demo use. Every pod runs the program `traffic`:
//! it serves, and clients are started in it with `kubectl exec`.

use super::TRAFFIC_IMAGE;

/// The port of every server.
pub(super) const PORT: u16 = 8080;

/// The port of a server on its node's network.
pub(super) const HOST_PORT: u16 = 18080;

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Serves {
    /// HTTP.
    Http,
    /// TCP: the server sends first.
    Greeting,
}

/// The pods of one name.
#[derive(Debug, Clone)]
pub(super) struct App<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// The label `version`; part of the Deployment's name.
    pub(super) version: &'a str,
    pub(super) replicas: usize,
    /// The node of all pods; any if none.
    pub(super) node: Option<&'a str>,
    pub(super) serves: Serves,
}

impl<'a> App<'a> {
    /// One HTTP server on a node, with a service account of its own.
    pub(super) fn on(namespace: &'a str, name: &'a str, node: &'a str) -> Self {
        Self {
            namespace,
            name,
            version: "v1",
            replicas: 1,
            node: Some(node),
            serves: Serves::Http,
        }
    }

    /// The name of its Deployment.
    pub(super) fn deployment(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Service account, Service and Deployment.
    pub(super) fn manifests(&self) -> String {
        service(self.namespace, self.name, "") + &self.pods("Deployment", &self.deployment(), "")
    }

    /// Service account, headless Service and StatefulSet.
    pub(super) fn stateful_manifests(&self) -> String {
        let more = format!("serviceName: {}", self.name);
        service(self.namespace, self.name, "clusterIP: None, ")
            + &self.pods("StatefulSet", self.name, &more)
    }

    /// The object that makes the pods; `more` is a line of its specification.
    fn pods(&self, kind: &str, object: &str, more: &str) -> String {
        let Self {
            namespace,
            name,
            version,
            replicas,
            ..
        } = self;
        let template = self.template();
        format!(
            "---\n\
             apiVersion: apps/v1\n\
             kind: {kind}\n\
             metadata: {{name: {object}, namespace: {namespace}}}\n\
             spec:\n\
             \x20 {more}\n\
             \x20 replicas: {replicas}\n\
             \x20 selector: {{matchLabels: {{app: {name}, version: {version}}}}}\n\
             \x20 template:\n{template}"
        )
    }

    /// The template of a pod, indented as a field of `spec`.
    fn template(&self) -> String {
        let (name, version) = (self.name, self.version);
        let kind = match self.serves {
            Serves::Http => "http",
            Serves::Greeting => "first",
        };
        let probe = match self.serves {
            Serves::Http => {
                format!("readinessProbe: {{httpGet: {{path: /, port: {PORT}}}, periodSeconds: 1}}")
            }
            Serves::Greeting => {
                format!("readinessProbe: {{tcpSocket: {{port: {PORT}}}, periodSeconds: 1}}")
            }
        };
        let node = self.node.map(|node| format!("  nodeName: {node}\n"));
        let node = node.unwrap_or_default();
        let text = format!(
            "metadata: {{labels: {{app: {name}, version: {version}}}}}\n\
             spec:\n\
             \x20 serviceAccountName: {name}\n\
             \x20 terminationGracePeriodSeconds: 1\n\
             {node}\
             \x20 containers:\n\
             \x20 - name: app\n\
             \x20   image: {TRAFFIC_IMAGE}\n\
             \x20   imagePullPolicy: IfNotPresent\n\
             \x20   args: [serve, {kind}, --listen, '[::]:{PORT}']\n\
             \x20   {probe}\n"
        );
        text.lines().map(|line| format!("    {line}\n")).collect()
    }
}

/// A Job whose pods make one call each and succeed with its answer, however long that takes. A pod
/// whose call fails is restarted, which the checks count.
pub(super) fn callers(namespace: &str, name: &str, pods: usize, to: &str) -> String {
    format!(
        "apiVersion: batch/v1\n\
         kind: Job\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n\
         \x20 parallelism: {pods}\n\
         \x20 completions: {pods}\n\
         \x20 backoffLimit: 10000\n\
         \x20 template:\n\
         \x20   metadata: {{labels: {{app: {name}}}}}\n\
         \x20   spec:\n\
         \x20     restartPolicy: OnFailure\n\
         \x20     containers:\n\
         \x20     - name: caller\n\
         \x20       image: {TRAFFIC_IMAGE}\n\
         \x20       imagePullPolicy: IfNotPresent\n\
         \x20       args: [calls, '{to}', --most, '1', --strict]\n"
    )
}

/// A pod on its node's network, which serves HTTP on [`HOST_PORT`].
pub(super) fn on_host_network(namespace: &str, name: &str, node: &str) -> String {
    let more = "hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet";
    let args = format!("serve, http, --listen, '[::]:{HOST_PORT}'");
    pod(namespace, name, node, more, &args)
}

/// A pod on a node that makes calls and prints their report.
pub(super) fn caller(namespace: &str, name: &str, node: &str, calls: &[&str]) -> String {
    let calls: Vec<String> = calls.iter().map(|call| format!("'{call}'")).collect();
    let args = format!("calls, {}", calls.join(", "));
    pod(namespace, name, node, "restartPolicy: Never", &args)
}

/// A pod by itself; `more` are fields of its specification, `args` those of the program.
fn pod(namespace: &str, name: &str, node: &str, more: &str, args: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, terminationGracePeriodSeconds: 1, {more}, containers: [{{name: app, \
         image: {TRAFFIC_IMAGE}, imagePullPolicy: IfNotPresent, args: [{args}]}}]}}\n"
    )
}

/// A Service for the pods of an app on a port of every node.
pub(super) fn node_port(namespace: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: {app}-node, namespace: {namespace}}}\n\
         spec: {{type: NodePort, selector: {{app: {app}}}, ports: [{{name: tcp, port: 80, targetPort: {PORT}}}]}}\n"
    )
}

fn service(namespace: &str, name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: ServiceAccount\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         ---\n\
         apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{more}selector: {{app: {name}}}, ports: [{{name: tcp, port: 80, targetPort: {PORT}}}]}}\n"
    )
}

/// An AuthorizationPolicy that allows callers of one service account only.
pub(super) fn allow_only(namespace: &str, app: &str, account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata: {{name: only-{account}, namespace: {namespace}}}\n\
         spec:\n\
         \x20 selector: {{matchLabels: {{app: {app}}}}}\n\
         \x20 action: ALLOW\n\
         \x20 rules: [{{from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/{account}]}}}}]}}]\n"
    )
}

/// A PeerAuthentication that demands mutual TLS of the callers of a namespace's pods.
pub(super) fn strict(namespace: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: PeerAuthentication\n\
         metadata: {{name: strict, namespace: {namespace}}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_yaml_ng::{Deserializer, Value};

    use super::*;

    fn objects(manifests: &str) -> Vec<Value> {
        let documents = Deserializer::from_str(manifests);
        documents
            .map(|one| Value::deserialize(one).unwrap())
            .collect()
    }

    #[test]
    fn the_manifests_of_an_app_make_its_pods() {
        let app = App::on("shop", "orders", "node-a");
        let of = [
            (app.manifests(), "Deployment", "orders-v1"),
            (app.stateful_manifests(), "StatefulSet", "orders"),
        ];
        for (manifests, kind, name) in of {
            let objects = objects(&manifests);
            let last = objects.last().unwrap();
            assert_eq!(objects.len(), 3, "{manifests}");
            assert_eq!(
                (&last["kind"], &last["metadata"]["name"]),
                (&kind.into(), &name.into())
            );
            let pod = &last["spec"]["template"]["spec"];
            assert_eq!(pod["nodeName"], "node-a", "{manifests}");
            assert_eq!(pod["containers"][0]["args"][1], "http", "{manifests}");
        }
    }

    #[test]
    fn jobs_and_policies_are_objects_of_their_namespace() {
        for manifest in [
            callers("shop", "callers", 3, "orders:80"),
            allow_only("shop", "orders", "web"),
            strict("shop"),
            on_host_network("shop", "host", "node-a"),
            node_port("shop", "orders"),
            caller("shop", "caller", "node-a", &["orders:80", "--most", "3"]),
        ] {
            let objects = objects(&manifest);
            assert_eq!(objects[0]["metadata"]["namespace"], "shop", "{manifest}");
        }
    }
}
