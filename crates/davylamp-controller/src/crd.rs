//! The custom resource definitions as YAML: what `davylamp-controller crd` prints and `deploy/crds/` holds.

use serde_yaml::Error;

/// All of them, as one stream of documents.
pub fn yaml() -> Result<String, Error> {
    let documents: Vec<String> = files()?.into_iter().map(|(_, text)| text).collect();
    Ok(format!("---\n{}", documents.join("---\n")))
}

/// One by one, with the names of their files.
pub fn files() -> Result<Vec<(String, String)>, Error> {
    davylamp_api::crds()
        .iter()
        .map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), serde_yaml::to_string(crd)?)))
        .collect()
}
