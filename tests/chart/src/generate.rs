//! Generated files for kustomize: a base with default values, components with the changes of other values, and the cleanup.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Chart, key, sorted, yaml};

const HEAD: &str = "# Generated from deploy/chart by `cargo xtask codegen`: do not edit.\n";
const VALUES: &str = "values.yaml";
const KUSTOMIZATION: &str = "kustomization.yaml";

/// Every generated file below the folder `deploy`, by path, with its contents.
///
/// # Errors
/// When the chart or a component's values are wrong.
pub fn files(deploy: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let chart = Chart::open(&deploy.join("chart"))?;
    let mut files = BTreeMap::new();
    whole(&chart, &json!({}), &deploy.join("base"), &mut files)?;
    let cleanup = deploy.join("cleanup");
    whole(&chart, &yaml(&cleanup.join(VALUES))?, &cleanup, &mut files)?;
    for folder in sorted(&deploy.join("components"))? {
        component(&chart, &folder, &mut files).with_context(|| folder.display().to_string())?;
    }
    Ok(files)
}

/// Files in generated folders that are generated no more.
///
/// # Errors
/// When a folder cannot be read.
pub fn obsolete(deploy: &Path, files: &BTreeMap<PathBuf, String>) -> Result<Vec<PathBuf>> {
    let mut folders = sorted(&deploy.join("components"))?;
    folders.extend([deploy.join("base"), deploy.join("cleanup")]);
    let mut obsolete = Vec::new();
    for folder in folders {
        let is_source = |path: &Path| path.file_name().is_some_and(|name| name == VALUES);
        obsolete.extend(
            sorted(&folder)?.into_iter().filter(|path| !files.contains_key(path) && !is_source(path)),
        );
    }
    Ok(obsolete)
}

/// A folder with all objects, one file for each template.
fn whole(chart: &Chart, values: &Value, folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let mut kustomization =
        format!("{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n");
    for rendered in chart.render(values)? {
        writeln!(kustomization, "- {}", rendered.file)?;
        files.insert(folder.join(&rendered.file), format!("{HEAD}{}", rendered.text));
    }
    files.insert(folder.join(KUSTOMIZATION), kustomization);
    Ok(())
}

/// The objects that a component's values add, change and remove.
fn component(chart: &Chart, folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let plain: BTreeMap<_, _> =
        chart.objects(&json!({}))?.into_iter().map(|object| (key(&object), object)).collect();
    let values = yaml(&folder.join(VALUES))?;
    let mut resources = String::new();
    let mut patches = String::new();
    let mut left = plain.clone();
    for rendered in chart.render(&values)? {
        let objects = rendered.documents()?;
        // Templates of optional objects render none by default.
        if objects.iter().all(|object| !plain.contains_key(&key(object))) {
            writeln!(resources, "- {}", rendered.file)?;
            files.insert(folder.join(&rendered.file), format!("{HEAD}{}", rendered.text));
            continue;
        }
        for object in objects {
            let before = left.remove(&key(&object)).context("an object is new in a template of the base")?;
            let (kind, name) = key(&object);
            let changes = json_patch::diff(&before, &object);
            if changes.is_empty() {
                continue;
            }
            writeln!(patches, "- target: {{kind: {kind}, name: {name}}}\n  patch: |-")?;
            for change in changes.iter() {
                writeln!(patches, "    - {}", serde_json::to_string(change)?)?;
            }
        }
    }
    for ((kind, name), object) in left {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        writeln!(
            patches,
            "- patch: |-\n    $patch: delete\n    apiVersion: {version}\n    kind: {kind}\n    metadata: {{name: {name}, \
             namespace: {namespace}}}",
            namespace = super::NAMESPACE,
        )?;
    }
    let mut kustomization = format!("{HEAD}apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n");
    for (field, list) in [("resources", resources), ("patches", patches)] {
        if !list.is_empty() {
            write!(kustomization, "{field}:\n{list}")?;
        }
    }
    files.insert(folder.join(KUSTOMIZATION), kustomization);
    Ok(())
}
