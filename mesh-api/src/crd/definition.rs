//! The CustomResourceDefinitions: derived from the types, then adapted to what an API server takes.
//!
//! In goes what `kube` derives; out come definitions with all served versions and structural schemas. The same schemas
//! check what the YAML reader reads, so that a file is judged as an API server would judge it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde_json::{Map, Value, json};

use super::Kind;

/// A definition as `kube` derives it.
pub type Derived = k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// Keyword of our schemas: the fields of which at most one may be set. Definitions spell it with `oneOf`.
pub const ONE_OF: &str = "x-one-of";

/// Versions served beside the first, as Istio serves them.
fn further_versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::VirtualService
        | Kind::DestinationRule
        | Kind::Gateway
        | Kind::ServiceEntry
        | Kind::Sidecar
        | Kind::WorkloadEntry
        | Kind::WorkloadGroup => &["v1beta1", "v1alpha3"],
        Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::RequestAuthentication => &["v1beta1"],
        Kind::Telemetry => &["v1alpha1"],
        Kind::ProxyConfig | Kind::MeshConfig => &[],
    }
}

/// Kinds whose `spec` must be there; the others may leave it out, as in Istio.
fn requires_spec(kind: Kind) -> bool {
    matches!(kind, Kind::ServiceEntry | Kind::WorkloadEntry)
}

/// All versions of a kind that objects may name, without the group.
pub fn served_versions(kind: Kind) -> Vec<String> {
    std::iter::once(kind.version())
        .chain(further_versions(kind).iter().map(|v| (*v).to_owned()))
        .collect()
}

/// The schema of a kind's objects, with [`ONE_OF`] where fields exclude each other.
pub fn schema(kind: Kind) -> &'static Value {
    static SCHEMAS: OnceLock<BTreeMap<Kind, Value>> = OnceLock::new();
    let all = SCHEMAS.get_or_init(|| Kind::ALL.iter().map(|kind| (*kind, adapted_schema(*kind))).collect());
    // Every kind is in the map: it was made from `Kind::ALL`.
    all.get(&kind).unwrap_or(&Value::Null)
}

/// The definition of a kind, ready for an API server.
pub fn definition(kind: Kind) -> Value {
    let mut definition = serde_json::to_value(kind.derived_definition()).unwrap_or_default();
    let mut schema = schema(kind).clone();
    spell_one_of(&mut schema);
    let Some(versions) = definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut) else {
        return definition;
    };
    if let Some(first) = versions.first_mut() {
        first["schema"]["openAPIV3Schema"] = schema;
    }
    for name in further_versions(kind) {
        if let Some(mut version) = versions.first().cloned() {
            version["name"] = json!(name);
            version["storage"] = json!(false);
            versions.push(version);
        }
    }
    definition
}

/// The definition of a kind as a YAML file.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn text(kind: Kind) -> Result<String, serde_saphyr::ser::Error> {
    let text = serde_saphyr::to_string(&definition(kind))?;
    Ok(format!("{}\n", text.trim_end()))
}

/// Name of a kind's file in the chart: that of the definition.
pub fn file_name(kind: Kind) -> String {
    let name = definition(kind)["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    format!("{name}.yaml")
}

/// The schema of a type as `kube` makes it for definitions, but with keywords of our own kept.
pub(super) fn derived_schema<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::openapi3()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

fn adapted_schema(kind: Kind) -> Value {
    let mut schema = kind.derived_schema();
    adapt(&mut schema);
    if let Some(object) = schema.as_object_mut() {
        object.remove("title");
        object.remove("required");
        if requires_spec(kind) {
            object.insert("required".to_owned(), json!(["spec"]));
        }
    }
    schema
}

/// Adapts a schema and all below it: integer formats that API servers do not know become bounds, defaults of the Rust
/// types (which would be written into objects) go, and only scalars may be null.
fn adapt(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("default");
    match object.get("format").and_then(Value::as_str) {
        Some("uint32") => {
            object.remove("format");
            object.insert("minimum".to_owned(), json!(0));
            object.insert("maximum".to_owned(), json!(u32::MAX));
        }
        Some("uint64") => {
            object.remove("format");
            object.insert("minimum".to_owned(), json!(0));
        }
        _ => {}
    }
    if !matches!(
        object.get("type").and_then(Value::as_str),
        Some("boolean" | "integer" | "number")
    ) {
        object.remove("nullable");
    }
    if let Some(values) = object.get_mut("enum").and_then(Value::as_array_mut) {
        values.retain(|value| !value.is_null());
    }
    for_each_subschema(object, adapt);
}

/// Replaces [`ONE_OF`] by the `oneOf` that API servers evaluate: none of the fields, or exactly one.
fn spell_one_of(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(fields) = object.remove(ONE_OF) {
        let required: Vec<Value> = fields
            .as_array()
            .into_iter()
            .flatten()
            .map(|f| json!({ "required": [f] }))
            .collect();
        let none = json!({ "not": { "anyOf": required.clone() } });
        let alternatives: Vec<Value> = std::iter::once(none).chain(required).collect();
        object.insert("oneOf".to_owned(), Value::Array(alternatives));
    }
    for_each_subschema(object, spell_one_of);
}

fn for_each_subschema(object: &mut Map<String, Value>, apply: fn(&mut Value)) {
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(apply);
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(schema) = object.get_mut(keyword) {
            apply(schema);
        }
    }
}
