//! Keys of labels, annotations and finalizers, and the names of field managers, in one place.

/// The API group of every kind of ours.
pub const GROUP: &str = "davylamp.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";

/// On everything that the controller owns, pods included: the name of the Rollout.
pub const ROLLOUT: &str = "davylamp.dev/rollout";
/// On pods: whether the pod should get traffic outside the router. In the `ReplicaSet`'s template, not in its selector.
pub const SERVING: &str = "davylamp.dev/serving";
/// The standard key that names a revision on its pods.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// On a `RolloutRun` while it is in flight.
pub const ACTIVE: &str = "davylamp.dev/active";
/// On the two Services that we own: `stable` or `canary`. On the `ReplicaSet` of a fresh baseline and its pods: `baseline`.
pub const ROLE: &str = "davylamp.dev/role";

/// On a `ControllerRevision`: the version of the hash function.
pub const HASH_VERSION: &str = "davylamp.dev/hash-version";
/// On a `ControllerRevision`: how many other templates share the hash before this one.
pub const COLLISIONS: &str = "davylamp.dev/collisions";

/// On a Rollout while a route holds our numbers.
pub const ROUTE_FINALIZER: &str = "davylamp.dev/route";

/// The field manager of objects that the controller owns.
pub const MANAGER: &str = "davylamp";
/// The field manager of a Rollout's finalizer and of statuses.
pub const MANAGER_STATUS: &str = "davylamp/status";
/// The field manager of a Rollout's absent `replicas`.
pub const MANAGER_SCALE: &str = "davylamp/scale";
/// The field manager of weights in routes.
pub const MANAGER_TRAFFIC: &str = "davylamp/traffic";
