"""The engineer's side: a model becomes tried variants, and those a signed bundle.

Import the modules by name (`skerry_packager.packing`, `skerry_packager.fleet_client`, …): importing the
package itself costs nothing.
"""

from __future__ import annotations
