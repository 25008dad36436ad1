"""Renders and validates manifests for tests/tests/deploy.rs.

    manifests.py validate VERSION            YAML documents on standard input
    manifests.py yaml                        YAML documents on standard input, taken as they are
    manifests.py chart FOLDER VERSION JSON   the chart, by Helm's own renderer, with these values

Prints the objects as one JSON array; fails, saying why, when one does not fit the schema of that Kubernetes version, or
when Helm's lint has anything to say.
"""

import json
import sys

import kubernetes_validate
import yaml


def validated(documents, version):
    objects = [document for document in documents if document]
    for thing in objects:
        kubernetes_validate.validate(thing, version, strict=True)
    return objects


def rendered(folder, version, values):
    import helm_python

    report = helm_python.lint(folder, values, strict=True, kube_version=f"v{version}.0")
    said = [message for message in report["messages"] if message["severity"] > 1]
    if said or report["errors"]:
        raise SystemExit(f"helm lint: {said} {report['errors']}")
    chart = helm_python.Chart.load(folder)
    # As `helm install` does: the render call alone does not look at the schema.
    chart.validate_schema(chart.merge_values(values))
    files = chart.render(values, name="waylay", namespace="waylay-system")
    for path, text in sorted(files.items()):
        if path.endswith(".txt"):
            print(text, file=sys.stderr)
        else:
            yield from yaml.safe_load_all(text)


def main():
    match sys.argv[1:]:
        case ["yaml"]:
            print(json.dumps(list(yaml.safe_load_all(sys.stdin))))
            return
        case ["validate", version]:
            documents = yaml.safe_load_all(sys.stdin)
        case ["chart", folder, version, values]:
            documents = rendered(folder, version, json.loads(values))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(validated(documents, version)))


main()
